"""What a training step with experts is measured against, all with the same widths and data."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from mmpretrain.models.backbones import VisionTransformer
from torch import Tensor, nn

from ..models import SupernetClassifier
from ..models.layers import (
    MoLELinear,
    expert_parameters,
    relative_attention,
    relative_index,
    slice_weight,
)
from ..structures import Subnet


class StaticViT(nn.Module):
    """A plain vision transformer of a subnet's widths, without relative positions: the limit.

    Args:
        subnet: The widths.
        spec: ``image_spec`` of a :class:`SupernetClassifier`.
    """

    def __init__(self, subnet: Subnet, spec: dict):
        super().__init__()
        width, patch = subnet.embed_dim, spec['patch_size']
        tokens = (spec['img_size'] // patch) ** 2 + 1
        self.patch_embed = nn.Conv2d(spec['in_channels'], width, patch, stride=patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width))
        self.blocks = nn.Sequential(
            *(
                StaticBlock(width, heads, spec['head_dim'], hidden)
                for heads, hidden in zip(subnet.num_heads, subnet.hidden_dims, strict=True)
            )
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, spec['num_classes'])

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes)."""
        x = self.patch_embed(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 1:].mean(dim=1))


class StaticBlock(nn.Module):
    """Pre-norm block around torch's attention kernel."""

    def __init__(self, width: int, num_heads: int, head_dim: int, hidden: int):
        super().__init__()
        self.num_heads, inner = num_heads, num_heads * head_dim
        self.attn_norm, self.ffn_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * inner), nn.Linear(inner, width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, C) to itself."""
        qkv = self.qkv(self.attn_norm(x)).unflatten(2, (3, self.num_heads, -1))
        y = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        x = x + self.proj(y.transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.ffn_norm(x))))


class MMPretrainViT(nn.Module):
    """MMPretrain's VisionTransformer as near as it comes to a subnet.

    Blocks are alike, with the subnet's mean number of heads and mean MLP width; its attention is
    as wide as the network, a little narrower or wider than the subnet's heads of 64.
    """

    def __init__(self, subnet: Subnet, spec: dict):
        super().__init__()
        width, heads = subnet.embed_dim, round(sum(subnet.num_heads) / subnet.depth)
        arch = dict(
            embed_dims=width - width % heads,
            num_layers=subnet.depth,
            num_heads=heads,
            feedforward_channels=round(sum(subnet.hidden_dims) / subnet.depth),
        )
        self.backbone = VisionTransformer(
            arch, spec['img_size'], spec['patch_size'], spec['in_channels'], out_type='avg_featmap'
        )
        self.head = nn.Linear(arch['embed_dims'], spec['num_classes'])

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes)."""
        return self.head(self.backbone(images)[0])


def made_naive(model: SupernetClassifier) -> SupernetClassifier:
    """``model`` with explicit relative positions and a loop over experts to merge."""
    spec = model.image_spec
    grid = spec['img_size'] // spec['patch_size']
    pairs = relative_index(grid, spec['max_relative_position'])
    pairs = tuple(index.to(model.backbone.pos_embed.device) for index in pairs)
    for block in model.backbone.blocks:
        block.attn.attend = partial(_explicit_attend, block.attn, pairs)
    for layer in model.backbone.mole_layers():
        layer.merge = partial(_loop_merge, layer)
    return model


def left_unmerged(model: SupernetClassifier) -> SupernetClassifier:
    """``model`` whose experts work on the tokens, next to the frozen weight."""
    for layer in model.backbone.mole_layers():
        layer.merge = partial(_hold_gates, layer)
        layer.forward = partial(_unmerged_forward, layer)
    return model


def _explicit_attend(attn, pairs, q, k, v, rel_index) -> Tensor:
    return relative_attention(q, k, v, attn.rel_pos_k(pairs), attn.rel_pos_v(pairs))


def _loop_merge(layer: MoLELinear, gates: Tensor, out_features: int, in_features: int) -> None:
    merged = slice_weight(layer.weight, out_features, in_features)
    for gate, down, up in zip(gates, layer.lora_a, layer.lora_b, strict=True):
        up = up[..., :out_features, :].flatten(0, -2)
        merged = merged + gate * (up @ down[:, :in_features]) / len(down)
    layer.merged = merged


def _hold_gates(layer: MoLELinear, gates: Tensor, out_features: int, in_features: int) -> None:
    # In the place of the merged weight, so that the model sees to them as it does to that.
    layer.merged = gates


def _unmerged_forward(layer: MoLELinear, x: Tensor, out_features=None, bias=None) -> Tensor:
    out_features = out_features or layer.out_features
    weight = slice_weight(layer.weight, out_features, x.shape[-1])
    bias = layer.bias[: layer.parts * out_features] if bias is None else bias
    down = layer.lora_a[..., : x.shape[-1]]  # (K, R, i)
    up = layer.lora_b[..., :out_features, :].flatten(1, -2)  # (K, P o, R)
    scaled = (down * (layer.merged / down.shape[1])[:, None, None]).flatten(0, 1)
    return F.linear(x, weight, bias) + (x @ scaled.T) @ up.transpose(1, 2).flatten(0, 1)


def forward_products(subnet: Subnet, spec: dict) -> dict[str, int]:
    """Multiply-adds of one image in the matrix products of :class:`StaticViT`, by what they serve.

    With N = patches + 1 tokens of width C, patches of P x P pixels, and in each block attention
    h = heads x head_dim wide and M hidden channels:

        patches    (N - 1) C channels P^2
        linears    sum over blocks of N C (4 h + 2 M)
        attention  sum over blocks of 2 N^2 h
        head       C classes

    Unlike ``count_flops``, which follows a published convention, these are the products taken.

    Args:
        subnet: The widths.
        spec: ``image_spec`` of a :class:`SupernetClassifier`.
    """
    width, patch = subnet.embed_dim, spec['patch_size']
    patches = (spec['img_size'] // patch) ** 2
    tokens, inner = patches + 1, spec['head_dim'] * sum(subnet.num_heads)
    return dict(
        patches=patches * width * spec['in_channels'] * patch**2,
        linears=tokens * width * (4 * inner + 2 * sum(subnet.hidden_dims)),
        attention=2 * tokens**2 * inner,
        head=width * spec['num_classes'],
    )


def step_products(name: str, forward: dict[str, int]) -> int:
    """Multiply-adds of one image in a training step of contestant ``name``.

    Each product of ``forward``, of :func:`forward_products`, is taken up to three times: for the
    output, the gradient of its input, and the gradient of its weight. Images need no gradient, so
    that patches count 2 at most. On a frozen supernet patches count 1 and the head 2, but merged
    layers 3: experts get their gradients through that of the merged weight. Unmerged layers count
    2. The frozen input of the first layer, which needs no gradient, is counted as if it did.
    """
    frozen = name in ('ours', 'naive', 'unmerged')
    times = dict(
        patches=1 if frozen else 2,
        linears=2 if name == 'unmerged' else 3,
        attention=3,
        head=2 if frozen else 3,
    )
    return sum(times[part] * count for part, count in forward.items())


def training_step(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    amp: bool = False,
    forward: Callable[[Tensor], Tensor] | None = None,
) -> Callable[[], None]:
    """One whole step of a model: experts by AdamW and router by SGD where it has them.

    With experts it sets the active subnet anew, routes and merges, as a training iteration does.
    ``forward`` takes the place of the model's own, such as its distributed wrapper.
    """
    optimizers, forward = optimizers_of(model), forward or model
    router = getattr(model, 'router', None)  # only a supernet with experts has one

    def step() -> None:
        if router is not None:
            model.set_subnet(model.subnet)
            model.merge_experts()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=amp):
            loss = F.cross_entropy(forward(images), labels)
        loss.backward()
        if router is not None:
            model.unmerge_experts()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return step


def optimizers_of(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Those of :func:`training_step`."""
    router = getattr(model, 'router', None)  # as above
    if router is None:
        return [torch.optim.AdamW(model.parameters(), lr=1e-4)]
    experts = torch.optim.AdamW(expert_parameters(model), lr=1e-4)
    return [experts, torch.optim.SGD(router.parameters(), lr=1e-3)]
