"""The models that the benchmark compares with ours, all with the same widths and data."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from mmpretrain.models.backbones import VisionTransformer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..models import SupernetClassifier
from ..models.layers import (
    MoLELinear,
    expert_parameters,
    merge_each,
    relative_attention,
    relative_index,
    slice_weight,
)
from ..structures import Subnet


class StaticViT(nn.Module):
    """A plain vision transformer of a subnet's widths, without relative positions: the limit."""

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
        """Map (B, N, C) to (B, N, C)."""
        qkv = self.qkv(self.attn_norm(x)).unflatten(2, (3, self.num_heads, -1))
        y = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        x = x + self.proj(y.transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.ffn_norm(x))))


class MMPretrainViT(nn.Module):
    """MMPretrain's VisionTransformer, as similar to a subnet as possible.

    All blocks have the subnet's mean number of heads and mean MLP width. The attention is as wide
    as the network, so its heads are a little narrower or wider than the subnet's.
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
    """Change ``model`` to use explicit relative positions, and to merge experts in a loop."""
    spec = model.image_spec
    grid = spec['img_size'] // spec['patch_size']
    pairs = relative_index(grid, spec['max_relative_position'])
    pairs = tuple(index.to(model.backbone.pos_embed.device) for index in pairs)
    for block in model.backbone.blocks:
        block.attn.attend = partial(_explicit_attend, block.attn, pairs)
    for layer in model.backbone.mole_layers():
        layer.merge = partial(_loop_merge, layer)
    return _merged_one_by_one(model)


def left_unmerged(model: SupernetClassifier) -> SupernetClassifier:
    """Change ``model`` to apply experts to tokens, in addition to the frozen weight."""
    for layer in model.backbone.mole_layers():
        layer.merge = partial(_hold_gates, layer)
        layer.forward = partial(_unmerged_forward, layer)
    return _merged_one_by_one(model)


def _merged_one_by_one(model: SupernetClassifier) -> SupernetClassifier:
    """Have ``layer.merge`` called on a GPU also."""
    backbone = model.backbone
    backbone.merge_experts = partial(backbone.merge_experts, merge=merge_each)
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
    layer.merged = gates  # the model treats them as it does a merged weight


def _unmerged_forward(layer: MoLELinear, x: Tensor, out_features=None, bias=None) -> Tensor:
    out_features = out_features or layer.out_features
    weight = slice_weight(layer.weight, out_features, x.shape[-1])
    bias = layer.bias[: layer.parts * out_features] if bias is None else bias
    down = layer.lora_a[..., : x.shape[-1]]  # (K, R, i)
    up = layer.lora_b[..., :out_features, :].flatten(1, -2)  # (K, P o, R)
    scaled = (down * (layer.merged / down.shape[1])[:, None, None]).flatten(0, 1)
    return F.linear(x, weight, bias) + (x @ scaled.T) @ up.transpose(1, 2).flatten(0, 1)


_MERGED = ('qkv.weight', 'proj.weight', 'fc1.weight', 'fc2.weight')
_WITH_GRADIENT = dict(  # parameters of StaticViT, for contestants that do not train all
    ours=_MERGED,
    naive=_MERGED,
    unmerged=('cls_token',),  # stands for the experts: all blocks need gradients of their inputs
)


def multiply_adds(subnet: Subnet, spec: dict, contestant: str | None = None) -> float:
    """Multiply-adds of one image in the matrix products of :class:`StaticViT`, by torch's counter.

    Of a forward, or of a training step of ``contestant``. A step takes each product up to three
    times: for the output, the gradient of the input, and the gradient of the weight. What is
    frozen needs no gradient of the weight. Merged layers do: the experts get their gradients
    through that of the merged weight.
    """
    with torch.device('meta'):  # where torch counts attention as plain products
        model = StaticViT(subnet, spec)
        image = torch.empty(1, spec['in_channels'], spec['img_size'], spec['img_size'])
    trained = _WITH_GRADIENT.get(contestant, ('',))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in trained))
    with FlopCounterMode(display=False) as counter:
        logits = model(image)
        if contestant is not None:
            logits.sum().backward()
    return counter.get_total_flops() / 2  # which counts a multiply-add as 2


def loss_of(
    model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, amp: bool = False
) -> Tensor:
    """Cross-entropy of a batch; with ``amp`` under bfloat16 autocast."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=amp):
        return F.cross_entropy(model(images), labels)


def training_step(
    model: nn.Module, images: Tensor, labels: Tensor, amp: bool = False
) -> Callable[[], None]:
    """One training step as a function. A supernet with experts sets, routes and merges in it."""
    optimizers = optimizers_of(model)
    has_experts = getattr(model, 'router', None) is not None

    def step() -> None:
        if has_experts:
            model.set_subnet(model.subnet)  # its forward routes and merges
        loss_of(model, images, labels, amp).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return step


def optimizers_of(model: nn.Module) -> list[torch.optim.Optimizer]:
    """AdamW for experts and SGD for the router, or AdamW for a model without experts.

    On a GPU their kernels are fused, as those of ``SupernetOptimWrapper``.
    """
    fused = next(model.parameters()).is_cuda or None
    router = getattr(model, 'router', None)
    if router is None:
        return [torch.optim.AdamW(model.parameters(), lr=1e-4, fused=fused)]
    experts = torch.optim.AdamW(expert_parameters(model), lr=1e-4, fused=fused)
    return [experts, torch.optim.SGD(router.parameters(), lr=1e-3, fused=fused)]
