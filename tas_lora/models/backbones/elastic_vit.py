"""The weight-entangled vision transformer of AutoFormer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from numbers import Integral

import numpy as np
import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...checks import boolean, bounded, one_of, positive, within
from ...errors import UserError
from ...registry import MODELS
from ...structures import SearchSpace, Subnet
from ..checkpoint import load_pretrained, pretrained_file
from ..layers import (
    ElasticAttention,
    ElasticLayerNorm,
    ElasticLinear,
    ElasticPatchEmbed,
    MoLELinear,
    PatchGrid,
    check_supernet,
    checked_patch_sizes,
    expert_sizes,
    linear_factory,
    recomputed,
)

OUT_TYPES = ('avg_featmap', 'cls_token', 'featmap')


class ElasticBlock(nn.Module):
    """Pre-norm transformer block; it stores no architecture.

    Args:
        embed_dim, num_heads, hidden_dim: Full width C, number of heads H and MLP width.
        head_dim: Width D of a head.
        max_relative_position: Offset R at which relative positions are clipped.
        drop_path_rate: Stochastic depth, the same rate for both branches.
        linear: Makes the linear layers, as ``linear(kind, in_features, out_features, parts=1)``
            with kind one of ``LAYER_KINDS``.
        init_std: Standard deviation of the initial position tables.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        hidden_dim: int,
        head_dim: int,
        max_relative_position: int,
        drop_path_rate: float,
        linear: Callable[..., ElasticLinear],
        init_std: float,
    ):
        super().__init__()
        self.attn_norm = ElasticLayerNorm(embed_dim)
        self.attn = ElasticAttention(
            embed_dim, num_heads, head_dim, max_relative_position, linear, init_std
        )
        self.ffn_norm = ElasticLayerNorm(embed_dim)
        self.fc1 = linear('fc1', embed_dim, hidden_dim)
        self.fc2 = linear('fc2', hidden_dim, embed_dim)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate else nn.Identity()

    def forward(
        self, x: Tensor, num_heads: int, hidden_dim: int, rel_index: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Map (B, N, C) to (B, N, C)."""
        x = x + self.drop_path(self.attention(x, num_heads, rel_index))
        return x + self.drop_path(self.mlp(x, hidden_dim))

    def attention(self, x: Tensor, num_heads: int, rel_index: tuple[Tensor, Tensor]) -> Tensor:
        """First branch, (B, N, C) to (B, N, C)."""
        return self.attn(self.attn_norm(x), num_heads, rel_index)

    def mlp(self, x: Tensor, hidden_dim: int) -> Tensor:
        """Second branch, (B, N, C) to (B, N, C)."""
        return self.fc2(F.gelu(self.fc1(self.ffn_norm(x), hidden_dim)), x.shape[-1])

    def sliced_linears(
        self, embed_dim: int, num_heads: int, hidden_dim: int
    ) -> Iterator[tuple[ElasticLinear, int, int]]:
        """Yield each linear layer with its active (output, input) widths, as in ``LAYER_KINDS``."""
        inner = num_heads * self.attn.head_dim
        yield self.attn.qkv, inner, embed_dim
        yield self.attn.proj, embed_dim, inner
        yield self.fc1, hidden_dim, embed_dim
        yield self.fc2, embed_dim, hidden_dim


@MODELS.register_module()
class ElasticViT(BaseModule):
    """Supernet of vision transformers: every subnet inside ``arch`` is a slice of its weights.

    Args:
        arch: The supernet's own size, a :class:`~tas_lora.Subnet`, its dict or its JSON file.
            For a fixed network, give its own size.
        img_size: Side of the square input in pixels.
        patch_size: Side of a patch in pixels, or several sides, of which a subnet uses one
            (``Subnet.patch_size``, by default the smallest). Smaller kernels are the top left of
            the largest. A patch has the position of the smallest patch around its centre;
            relative positions are counted in patches.
        in_channels: Image channels.
        head_dim: Width of one attention head, the same in all subnets.
        max_relative_position: Offset at which 2-D relative positions are clipped.
        out_type: Output of :meth:`forward`: 'avg_featmap', the mean over patches (AutoFormer),
            'cls_token', or 'featmap', all patches as a map.
        out_indices: One or several blocks to output, in rising order. Negative ones count from
            the supernet's last block, the only one whose output is normalised (as in MMPretrain).
        frozen_stages: Freeze nothing (-1), patches and positions (0), or also the first k blocks
            (k); at k = depth also the norm. Not for a backbone with ``mole``.
        drop_path_rate: Stochastic depth of the last block. The rate rises linearly over the
            supernet's depth; a shallower subnet keeps the first rates.
        mole: Experts of the linear layers, ``dict(num_experts=K, rank=R)`` and the options of
            :func:`~tas_lora.models.layers.expert_sizes`; None for no experts.
        init_std: Standard deviation of the initial weights; biases start at 0.
        compile_blocks: Run the branches of blocks through ``torch.compile``. Each pair of widths
            (6 + 6 in T) takes some seconds on first use, or at the start (``CompileWarmupHook``).
        with_cp: Recompute activations inside blocks in the backward to save memory.
        init_cfg: MMEngine's initialisation config. ``dict(type='Pretrained', checkpoint=FILE)``
            accepts the same files as ``load_supernet``, and resizes positions to this image size.

    Raises:
        UserError: If an argument is out of range, or an image has another size.
    """

    def __init__(
        self,
        arch: Subnet | dict | str,
        img_size: int = 224,
        patch_size: int | Sequence[int] = 16,
        in_channels: int = 3,
        head_dim: int = 64,
        max_relative_position: int = 14,
        out_type: str = 'avg_featmap',
        out_indices: int | Sequence[int] = -1,
        frozen_stages: int = -1,
        drop_path_rate: float = 0.0,
        mole: dict | None = None,
        init_std: float = 0.02,
        compile_blocks: bool = False,
        with_cp: bool = False,
        init_cfg: dict | None = None,
    ):
        super().__init__(init_cfg)
        self.with_cp = boolean(with_cp, 'with_cp')
        with within('arch'):
            self.arch = Subnet.coerce(arch)
        one_of(out_type, 'out_type', OUT_TYPES)
        rate = bounded(drop_path_rate, 'drop_path_rate', reached=False)
        init_std = positive(init_std, 'init_std', float)
        sizes = dict(
            img_size=img_size,
            in_channels=in_channels,
            head_dim=head_dim,
            max_relative_position=max_relative_position,
        )
        for field, size in sizes.items():
            positive(size, field, int)
        self.patch_sizes = checked_patch_sizes(patch_size, img_size)
        # Arguments of count_params and count_flops, except for the classes.
        self.image_spec = sizes | dict(patch_size=self.patch_sizes[0])
        self.out_type = out_type
        self.out_indices = output_blocks(out_indices, self.arch.depth)
        experts = expert_sizes(mole, self.arch.depth)
        check_supernet(self.arch, self.image_spec, experts)
        self.check_fits(self.arch, 'arch')
        self._build_tokens(init_std)
        self.blocks = self._build_blocks(rate, experts, init_std)
        self.num_experts = 0 if mole is None else mole['num_experts']  # K, as in the router
        self.compile_blocks = boolean(compile_blocks, 'compile_blocks')
        if self.compile_blocks:
            compile_branches(self.blocks)
        self.norm = ElasticLayerNorm(self.arch.embed_dim)
        self.frozen_stages = frozen_stages_of(frozen_stages, self.arch.depth, self.num_experts)
        self._freeze()

    def forward(self, images: Tensor, subnet: Subnet | None = None) -> tuple[Tensor, ...]:
        """Features of ``subnet`` (the full ``arch`` if None).

        A block beyond the subnet's depth passes its input on, so its output is that of the last
        block, and every subnet gives the same number of features.

        Args:
            images: (B, in_channels, img_size, img_size).
            subnet: The slice to run; it must fit inside ``arch``.

        Returns:
            For each of ``out_indices`` a pooled feature (B, C), or with 'featmap' a map
            (B, C, img_size / patch_size, img_size / patch_size), with the subnet's width C and
            patch_size.
        """
        subnet = subnet or self.arch
        check_images(images, self.image_spec)
        x = self.patch_embed(images, subnet.embed_dim, self.patch_size_of(subnet))
        cls_token = self.cls_token[..., : subnet.embed_dim].expand(len(x), -1, -1)
        x = torch.cat([cls_token, x], dim=1) + self.positions(subnet)  # (B, patches + 1, C)
        grid = self._grid_of(subnet)
        rel_index = (grid.rel_index, grid.rel_marks)
        recompute = self.with_cp and torch.is_grad_enabled()
        outputs = {}
        for i, (block, (_, num_heads, hidden_dim)) in enumerate(self.active_blocks(subnet)):
            inputs = (x, num_heads, hidden_dim, rel_index)
            x = recomputed(block, *inputs) if recompute else block(*inputs)
            if i in self.out_indices:
                outputs[i] = x
        outputs = {i: outputs.get(i, x) for i in self.out_indices}
        if self.arch.depth - 1 in outputs:
            outputs[self.arch.depth - 1] = self.norm(x)
        return tuple(form_output(tokens, self.out_type) for tokens in outputs.values())

    def train(self, mode: bool = True) -> 'ElasticViT':
        """As in torch, but frozen blocks stay in evaluation mode, without drop path."""
        super().train(mode)
        for part in self._frozen_parts():
            part.eval()
        return self

    def init_weights(self) -> None:
        """As in MMEngine, but a pretrained file is read safely and refused if it does not fit."""
        file = pretrained_file(self.init_cfg)
        if file is None:
            super().init_weights()
        else:
            load_pretrained(self, file)
            self.is_init = True

    def check_fits(self, subnet: Subnet, what: str = 'subnet') -> None:
        """Raise :class:`UserError` unless ``subnet`` is a slice of this supernet."""
        subnet.check_fits(self.arch, what)
        if subnet.patch_size not in (None, *self.patch_sizes):
            raise UserError(
                f'{what} does not fit: patch_size is {subnet.patch_size}, the supernet has '
                f'{list(self.patch_sizes)}; choose one of them, or list it in patch_size of the '
                'backbone'
            )

    def check_space(self, space: SearchSpace, what: str) -> None:
        """Raise :class:`UserError` unless all subnets of ``space`` are slices of this supernet."""
        for patch_size in space.patch_size or (None,):
            largest = replace(space.largest(), patch_size=patch_size)
            self.check_fits(largest, f'the largest subnet of {what}')

    def is_full(self, subnet: Subnet) -> bool:
        """Whether ``subnet`` is the whole supernet, with its smallest patches."""

        def sizes(net: Subnet) -> tuple:
            return net.embed_dim, net.num_heads, net.hidden_dims, self.patch_size_of(net)

        return sizes(subnet) == sizes(self.arch)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Layer of a parameter and number of layers, as MMPretrain's layer decay of rates asks.

        Patches, tokens and positions are layer 0, block i is i + 1, and what follows is the last.
        """
        layers = self.arch.depth + 2
        name = param_name.removeprefix(prefix)
        if not param_name.startswith(prefix) or name.startswith('norm.'):
            return layers - 1, layers
        return (int(name.split('.')[1]) + 1 if name.startswith('blocks.') else 0), layers

    def patch_size_of(self, subnet: Subnet) -> int:
        """Side of a patch in pixels: the subnet's own, by default the smallest."""
        return subnet.patch_size or self.patch_sizes[0]

    def positions(self, subnet: Subnet) -> Tensor:
        """Position embedding of ``subnet``, (1, patches + 1, C), class token first."""
        return self._grid_of(subnet).positions_in(self.pos_embed[..., : subnet.embed_dim])

    def active_blocks(self, subnet: Subnet) -> Iterator[tuple[ElasticBlock, tuple[int, int, int]]]:
        """Yield the blocks of ``subnet``, each with (embed_dim, num_heads, hidden_dim)."""
        widths = zip(subnet.num_heads, subnet.hidden_dims, strict=True)
        for block, (num_heads, hidden_dim) in zip(self.blocks, widths, strict=False):
            yield block, (subnet.embed_dim, num_heads, hidden_dim)

    def merge_experts(self, subnet: Subnet, gates: Tensor) -> None:
        """Merge the experts of the active layers; ``gates`` is (L, 4, K)."""
        for (block, widths), block_gates in zip(self.active_blocks(subnet), gates, strict=True):
            layers = block.sliced_linears(*widths)
            for (layer, out_features, in_features), gate in zip(layers, block_gates, strict=True):
                if isinstance(layer, MoLELinear):
                    layer.merge(gate, out_features, in_features)

    def unmerge_experts(self) -> None:
        """Drop all merged weights, which leaves the bare supernet."""
        for layer in self.mole_layers():
            layer.unmerge()

    def mole_layers(self) -> Iterator[MoLELinear]:
        """The layers with experts; none without ``mole``."""
        return (layer for layer in self.modules() if isinstance(layer, MoLELinear))

    def _build_tokens(self, init_std: float) -> None:
        """Build patch embedding, class token and positions."""
        width, spec = self.arch.embed_dim, self.image_spec
        sides = {size: spec['img_size'] // size for size in self.patch_sizes}  # in patches
        finest = sides[self.patch_sizes[0]]
        self.patch_embed = ElasticPatchEmbed(spec['in_channels'], width, self.patch_sizes[-1])
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, finest**2 + 1, width))
        nn.init.trunc_normal_(self.cls_token, std=init_std)
        nn.init.trunc_normal_(self.pos_embed, std=init_std)
        self.grids = nn.ModuleDict()
        for size, side in sides.items():
            grid = PatchGrid(side, finest, spec['max_relative_position'], spec['head_dim'])
            self.grids[str(size)] = grid

    def _grid_of(self, subnet: Subnet) -> PatchGrid:
        return self.grids[str(self.patch_size_of(subnet))]

    def _build_blocks(self, last_rate: float, experts: list[dict], std: float) -> nn.ModuleList:
        arch, spec = self.arch, self.image_spec
        rates = np.linspace(0, last_rate, arch.depth).tolist()
        attention = spec['head_dim'], spec['max_relative_position']
        blocks = zip(arch.num_heads, arch.hidden_dims, rates, experts, strict=True)
        return nn.ModuleList(
            ElasticBlock(
                arch.embed_dim, heads, hidden, *attention, rate, linear_factory(own, std), std
            )
            for heads, hidden, rate, own in blocks
        )

    def _frozen_parts(self) -> list[nn.Module]:
        """The modules that ``frozen_stages`` freezes."""
        if self.frozen_stages < 0:
            return []
        norm = [self.norm] if self.frozen_stages == self.arch.depth else []
        return [self.patch_embed, *self.blocks[: self.frozen_stages], *norm]

    def _freeze(self) -> None:
        """Freeze these modules along with class token and positions."""
        for part in self._frozen_parts():
            part.requires_grad_(False)
        if self.frozen_stages >= 0:
            self.cls_token.requires_grad_(False)
            self.pos_embed.requires_grad_(False)


def output_blocks(indices: int | Sequence[int], depth: int) -> tuple[int, ...]:
    """Return block numbers from 0 for indices that may count from the end.

    Args:
        indices: One or several, each from ``-depth`` to ``depth - 1``.
        depth: Number of blocks.

    Raises:
        UserError: If they are out of range, or their blocks do not rise.
    """
    several = isinstance(indices, Sequence) and not isinstance(indices, str)
    given = tuple(indices) if several else (indices,)
    if not given or not all(_is_between(index, -depth, depth - 1) for index in given):
        raise UserError(
            f'must be integers from {-depth} to {depth - 1}, as arch has {depth} blocks, got '
            f'{indices!r}',
            'out_indices',
        )
    blocks = tuple(int(index) % depth for index in given)
    if list(blocks) != sorted(set(blocks)):
        raise UserError(
            f'must rise, each block once, got {indices!r}, which are blocks {list(blocks)}',
            'out_indices',
        )
    return blocks


def frozen_stages_of(value: int, depth: int, num_experts: int) -> int:
    """Return ``value``, from -1 to ``depth``; raises :class:`UserError` otherwise."""
    if not _is_between(value, -1, depth):
        raise UserError(
            f'must be an integer from -1 to {depth}, the blocks of arch, got {value!r}',
            'frozen_stages',
        )
    if value >= 0 and num_experts:
        raise UserError(
            f'is {value}: with mole the supernet is frozen except for its experts; leave it out',
            'frozen_stages',
        )
    return int(value)


def form_output(tokens: Tensor, out_type: str) -> Tensor:
    """Pool tokens (B, 1 + H W, C) to (B, C), or form a square map (B, C, H, W)."""
    if out_type == 'cls_token':
        return tokens[:, 0]
    patches = tokens[:, 1:]
    if out_type == 'avg_featmap':
        return patches.mean(dim=1)
    side = round(patches.shape[1] ** 0.5)
    return patches.transpose(1, 2).unflatten(2, (side, side))


def check_images(images: Tensor, spec: Mapping[str, int]) -> None:
    """Raise :class:`UserError` unless images fit ``img_size`` and ``in_channels``."""
    expected = (spec['in_channels'], spec['img_size'], spec['img_size'])
    if images.shape[1:] != expected:
        raise UserError(
            f'the backbone takes images of shape {expected}, got {tuple(images.shape[1:])}; '
            'change img_size and in_channels of the backbone, or the data pipeline'
        )


def compile_branches(blocks: nn.ModuleList) -> None:
    """Run ``attention`` and ``mlp`` of all blocks through ``torch.compile``.

    They are compiled as functions of the class, so blocks of the same widths share code. Drop path
    is in neither: its rate differs by block and would be compiled in.
    """
    # The default of 8 shapes is too few for any space: T with three patch sizes has 108, and
    # evaluation its own. torch has this setting only per process.
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, 512)
    kind = type(blocks[0])
    attention = torch.compile(kind.attention, dynamic=False)
    mlp = torch.compile(kind.mlp, dynamic=False)
    for block in blocks:
        block.attention, block.mlp = partial(attention, block), partial(mlp, block)


def _is_between(value, low: int, high: int) -> bool:
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    return whole and low <= value <= high
