"""The weight-entangled vision transformer: AutoFormer's, or one that began as a pretrained ViT."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...checks import boolean, bounded, one_of, positive, within
from ...errors import UserError
from ...registry import MODELS
from ...structures import SearchSpace, Subnet, ViTStyle
from ..checkpoint import load_pretrained, pretrained_file
from ..layers import (
    ElasticBlock,
    ElasticLayerNorm,
    ElasticPatchEmbed,
    MoLELinear,
    PatchGrid,
    Sliced,
    check_supernet,
    checked_patch_sizes,
    compile_branches,
    expert_sizes,
    linear_factory,
    merge_layers,
    recomputed,
)
from .outputs import (
    OUT_TYPES,
    check_images,
    checked_order,
    form_output,
    frozen_stages_of,
    output_blocks,
)


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
        max_relative_position: Offset at which 2-D relative positions are clipped; None for
            attention without them, which costs as much as a plain ViT's.
        style: How the networks are built, a :class:`~tas_lora.structures.ViTStyle` or its dict;
            by default AutoFormer's.
        block_order: The blocks by their worth, the best first. A subnet of depth d runs the best
            d of them, in the network's order. By default the order of the weights that are loaded,
            or else the first d.
        out_type: Output of :meth:`forward`: 'avg_featmap', the mean over patches (AutoFormer),
            'cls_token', 'cls_avg', both one after the other, or 'featmap', all patches as a map.
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
        max_relative_position: int | None = 14,
        style: ViTStyle | dict | None = None,
        block_order: Sequence[int] | None = None,
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
        sizes = dict(img_size=img_size, in_channels=in_channels, head_dim=head_dim)
        for field, size in sizes.items():
            positive(size, field, int)
        self.style = ViTStyle.coerce(style)
        self._check_style(max_relative_position, out_type)
        self.patch_sizes = checked_patch_sizes(patch_size, img_size)
        self.out_type = out_type
        # Arguments of count_params and count_flops, except for the classes.
        self.image_spec = sizes | dict(
            patch_size=self.patch_sizes[0],
            max_relative_position=max_relative_position,
            style=self.style,
            feature_parts=self.feature_parts,
        )
        self.block_order = checked_order(block_order, self.arch.depth)
        self._is_given_order = block_order is not None
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
        has_norm = self.style.final_norm != 'none'
        self.norm = self._build_norm() if has_norm else nn.Identity()
        self.frozen_stages = frozen_stages_of(frozen_stages, self.arch.depth, self.num_experts)
        self._freeze()

    def forward(self, images: Tensor, subnet: Subnet | None = None) -> tuple[Tensor, ...]:
        """Features of ``subnet`` (the full ``arch`` if None).

        A block that the subnet skips passes its input on, so its output is that of the block
        before, and every subnet gives the same number of features.

        Args:
            images: (B, in_channels, img_size, img_size).
            subnet: The slice to run; it must fit inside ``arch``.

        Returns:
            For each of ``out_indices`` a pooled feature (B, C), of 'cls_avg' (B, 2 C), or with
            'featmap' a map (B, C, img_size / patch_size, img_size / patch_size), with the subnet's
            width C and patch_size.
        """
        subnet = subnet or self.arch
        check_images(images, self.image_spec)
        x, grid = self.embed(images, subnet), self._grid_of(subnet)
        rel_index = (grid.rel_index, grid.rel_marks)
        recompute = self.with_cp and torch.is_grad_enabled()
        running = dict(zip(self.blocks_of(subnet), self.active_blocks(subnet), strict=True))
        outputs = {}
        for i in range(self.arch.depth):
            if i in running:
                block, (_, num_heads, hidden_dim) = running[i]
                inputs = (x, num_heads, hidden_dim, rel_index)
                x = recomputed(block, *inputs) if recompute else block(*inputs)
            if i in self.out_indices:
                outputs[i] = x
        return tuple(self._form(x, is_last=i == self.arch.depth - 1) for i, x in outputs.items())

    def embed(self, images: Tensor, subnet: Subnet) -> Tensor:
        """Input of the first block, (B, P + patches, C), from images as in :meth:`forward`."""
        x = self.patch_embed(images, subnet.embed_dim, self.patch_size_of(subnet))
        positions = self.positions(subnet)
        if not self.style.prefix_positions:
            x = x + positions
        if self.style.num_prefix_tokens:
            prefix = self.cls_token[..., : subnet.embed_dim].expand(len(x), -1, -1)
            x = torch.cat([prefix, x], dim=1)
        if self.style.prefix_positions:
            x = x + positions
        return self.pre_norm(x)

    def adopt_order(self, state_dict: dict[str, Tensor], prefix: str = '') -> None:
        """Take ``block_order`` out of a state dict, which has one if blocks were ranked.

        Raises:
            UserError: If the config has another one.
        """
        stored = state_dict.pop(f'{prefix}block_order', None)
        if stored is None or list(self.block_order) == stored.tolist():
            return
        if self._is_given_order:
            raise UserError(
                f'is {list(self.block_order)}, and that of the weights is {stored.tolist()}; leave '
                'it out to use theirs',
                'model.backbone.block_order',
            )
        self.block_order = checked_order(stored.tolist(), self.arch.depth)
        self._is_given_order = True

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
        subnet.check_fits(self.run_at(subnet.depth), what)
        if subnet.patch_size not in (None, *self.patch_sizes):
            raise UserError(
                f'{what} does not fit: patch_size is {subnet.patch_size}, the supernet has '
                f'{list(self.patch_sizes)}; choose one of them, or list it in patch_size of the '
                'backbone'
            )

    def run_at(self, depth: int) -> Subnet:
        """The full widths of the blocks that a subnet of this depth runs."""
        blocks = sorted(self.block_order[:depth])
        genes = (self.arch.num_heads, self.arch.mlp_ratio)
        return replace(
            self.arch,
            num_heads=tuple(genes[0][i] for i in blocks),
            mlp_ratio=tuple(genes[1][i] for i in blocks),
        )

    def check_space(self, space: SearchSpace, what: str) -> None:
        """Raise :class:`UserError` unless all subnets of ``space`` are slices of this supernet."""
        for patch_size in space.patch_size or (None,):
            largest = replace(space.largest(), patch_size=patch_size)
            self.check_fits(largest, f'the largest subnet of {what}')

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
        """Position embedding of ``subnet``, (1, rows, C), those of prefix tokens first."""
        return self._grid_of(subnet).positions_in(self.pos_embed[..., : subnet.embed_dim])

    @property
    def feature_parts(self) -> int:
        """Vectors of the network's width in a pooled feature."""
        return 2 if self.out_type == 'cls_avg' else 1

    def is_whole(self, subnet: Subnet) -> bool:
        """Whether ``subnet`` is this network at its full size."""
        same = all(
            getattr(subnet, size) == getattr(self.arch, size)
            for size in ('embed_dim', 'num_heads', 'hidden_dims')
        )
        return same and self.patch_size_of(subnet) == self.patch_size_of(self.arch)

    def blocks_of(self, subnet: Subnet) -> list[int]:
        """The blocks that ``subnet`` runs, in order: the best ones of ``block_order``."""
        return sorted(self.block_order[: subnet.depth])

    def active_blocks(self, subnet: Subnet) -> Iterator[tuple[ElasticBlock, tuple[int, int, int]]]:
        """Yield the blocks of ``subnet``, each with (embed_dim, num_heads, hidden_dim)."""
        widths = zip(subnet.num_heads, subnet.hidden_dims, strict=True)
        for i, (num_heads, hidden_dim) in zip(self.blocks_of(subnet), widths, strict=True):
            yield self.blocks[i], (subnet.embed_dim, num_heads, hidden_dim)

    def merge_experts(
        self,
        subnet: Subnet,
        gates: Tensor,
        merge: Callable[[Sequence[Sliced], Tensor], None] = merge_layers,
    ) -> None:
        """Merge the experts of the active layers.

        Args:
            subnet: The subnet to merge for.
            gates: (L, 4, K).
            merge: Merges the layers of one kind, by their gates (L, K).
        """
        blocks = [block.sliced_linears(*widths) for block, widths in self.active_blocks(subnet)]
        kinds = zip(zip(*blocks, strict=True), gates.unbind(1), strict=True)
        for layers, gates_of_kind in kinds:
            merge(layers, gates_of_kind)

    def unmerge_experts(self) -> None:
        """Drop all merged weights, which leaves the bare supernet."""
        for layer in self.mole_layers():
            layer.unmerge()

    def mole_layers(self) -> Iterator[MoLELinear]:
        """The layers with experts; none without ``mole``."""
        return (layer for layer in self.modules() if isinstance(layer, MoLELinear))

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if list(self.block_order) != sorted(self.block_order):
            destination[f'{prefix}block_order'] = torch.tensor(self.block_order)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        self.adopt_order(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _check_style(self, max_offset: int | None, out_type: str) -> None:
        """Refuse parts that do not go together."""
        prefix = self.style.num_prefix_tokens
        if max_offset is not None:
            positive(max_offset, 'max_relative_position', int)
            if prefix != 1:
                raise UserError(
                    f'is {prefix}, but relative positions know one class token; set '
                    'max_relative_position=None, or 1 here',
                    'style.num_prefix_tokens',
                )
        if out_type.startswith('cls') and not prefix:
            raise UserError(
                f"is '{out_type}', but style.num_prefix_tokens is 0: there is no class token; "
                "choose 'avg_featmap' or 'featmap'",
                'out_type',
            )
        if out_type == 'cls_avg' and self.style.final_norm == 'pooled':
            raise UserError("is 'pooled', which has no form for out_type 'cls_avg'", 'final_norm')

    def _build_norm(self) -> ElasticLayerNorm:
        return ElasticLayerNorm(self.arch.embed_dim, self.style.norm_eps)

    def _build_tokens(self, init_std: float) -> None:
        """Build patch embedding, prefix tokens, positions and the norm after them."""
        width, spec, style = self.arch.embed_dim, self.image_spec, self.style
        sides = {size: spec['img_size'] // size for size in self.patch_sizes}  # in patches
        finest = sides[self.patch_sizes[0]]
        rows = style.num_prefix_tokens if style.prefix_positions else 0
        self.patch_embed = ElasticPatchEmbed(spec['in_channels'], width, self.patch_sizes[-1])
        if style.num_prefix_tokens:
            self.cls_token = nn.Parameter(torch.empty(1, style.num_prefix_tokens, width))
            nn.init.trunc_normal_(self.cls_token, std=init_std)
        self.pos_embed = nn.Parameter(torch.empty(1, rows + finest**2, width))
        nn.init.trunc_normal_(self.pos_embed, std=init_std)
        self.pre_norm = self._build_norm() if style.pre_norm else nn.Identity()
        self.grids = nn.ModuleDict()
        reach, head_dim = spec['max_relative_position'], spec['head_dim']
        for size, side in sides.items():
            self.grids[str(size)] = PatchGrid(side, finest, reach, head_dim, rows)

    def _form(self, tokens: Tensor, is_last: bool) -> Tensor:
        """Output of a block; that of the last one is normalised where the style says."""
        place, prefix = self.style.final_norm if is_last else 'none', self.style.num_prefix_tokens
        tokens = self.norm(tokens) if place == 'tokens' else tokens
        output = form_output(tokens, self.out_type, prefix)
        return self.norm(output) if place == 'pooled' and output.dim() == 2 else output

    def _grid_of(self, subnet: Subnet) -> PatchGrid:
        return self.grids[str(self.patch_size_of(subnet))]

    def _build_blocks(self, last_rate: float, experts: list[dict], std: float) -> nn.ModuleList:
        arch, spec = self.arch, self.image_spec
        rates = np.linspace(0, last_rate, arch.depth).tolist()
        attention = spec['head_dim'], spec['max_relative_position']
        blocks = zip(arch.num_heads, arch.hidden_dims, rates, experts, strict=True)
        return nn.ModuleList(
            ElasticBlock(
                arch.embed_dim,
                heads,
                hidden,
                *attention,
                rate,
                linear_factory(own, std),
                std,
                self.style,
            )
            for heads, hidden, rate, own in blocks
        )

    def _frozen_parts(self) -> list[nn.Module]:
        """The modules that ``frozen_stages`` freezes."""
        if self.frozen_stages < 0:
            return []
        norm = [self.norm] if self.frozen_stages == self.arch.depth else []
        return [self.patch_embed, self.pre_norm, *self.blocks[: self.frozen_stages], *norm]

    def _freeze(self) -> None:
        """Freeze these modules along with prefix tokens and positions."""
        for part in self._frozen_parts():
            part.requires_grad_(False)
        if self.frozen_stages >= 0:
            self.pos_embed.requires_grad_(False)
            if self.style.num_prefix_tokens:
                self.cls_token.requires_grad_(False)
