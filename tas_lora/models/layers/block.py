"""One elastic block of a vision transformer."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn

from ...structures import ViTStyle
from .attention import ElasticAttention
from .elastic import ElasticLayerNorm, ElasticLinear


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), the GELU of CLIP."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = dict(
    gelu=F.gelu, gelu_tanh=partial(F.gelu, approximate='tanh'), quick_gelu=quick_gelu
)


class ElasticBlock(nn.Module):
    """Pre-norm transformer block; it stores no architecture.

    Args:
        embed_dim, num_heads, hidden_dim: Full width C, number of heads H and MLP width.
        head_dim: Width D of a head.
        max_relative_position: Offset R at which relative positions are clipped; None without them.
        drop_path_rate: Stochastic depth, the same rate for both branches.
        linear: Makes the linear layers, as ``linear(kind, in_features, out_features, parts=1)``
            with kind one of ``LAYER_KINDS``.
        init_std: Standard deviation of the initial position tables.
        style: How the family is built.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        hidden_dim: int,
        head_dim: int,
        max_relative_position: int | None,
        drop_path_rate: float,
        linear: Callable[..., ElasticLinear],
        init_std: float,
        style: ViTStyle,
    ):
        super().__init__()
        self.attn_norm = ElasticLayerNorm(embed_dim, style.norm_eps)
        self.attn = ElasticAttention(
            embed_dim,
            num_heads,
            head_dim,
            max_relative_position,
            linear,
            init_std,
            style.qkv_bias_by_part,
        )
        self.ffn_norm = ElasticLayerNorm(embed_dim, style.norm_eps)
        self.fc1 = linear('fc1', embed_dim, hidden_dim)
        self.fc2 = linear('fc2', hidden_dim, embed_dim)
        self.act = ACTIVATIONS[style.act]
        for name in ('attn_scale', 'mlp_scale'):  # LayerScale
            has_scale = style.layer_scale is not None
            scale = torch.full((embed_dim,), style.layer_scale) if has_scale else None
            self.register_parameter(name, nn.Parameter(scale) if has_scale else None)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate else nn.Identity()

    def forward(
        self,
        x: Tensor,
        num_heads: int,
        hidden_dim: int,
        rel_index: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Map (B, N, C) to (B, N, C)."""
        x = x + self.drop_path(self.attention(x, num_heads, rel_index))
        return x + self.drop_path(self.mlp(x, hidden_dim))

    def attention(
        self, x: Tensor, num_heads: int, rel_index: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """First branch, (B, N, C) to (B, N, C)."""
        return _scaled(self.attn(self.attn_norm(x), num_heads, rel_index), self.attn_scale)

    def mlp(self, x: Tensor, hidden_dim: int) -> Tensor:
        """Second branch, (B, N, C) to (B, N, C)."""
        y = self.fc2(self.act(self.fc1(self.ffn_norm(x), hidden_dim)), x.shape[-1])
        return _scaled(y, self.mlp_scale)

    def sliced_linears(
        self, embed_dim: int, num_heads: int, hidden_dim: int
    ) -> Iterator[tuple[ElasticLinear, int, int]]:
        """Yield each linear layer with its active (output, input) widths, as in ``LAYER_KINDS``."""
        inner = num_heads * self.attn.head_dim
        yield self.attn.qkv, inner, embed_dim
        yield self.attn.proj, embed_dim, inner
        yield self.fc1, hidden_dim, embed_dim
        yield self.fc2, embed_dim, hidden_dim


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


def _scaled(x: Tensor, scale: Tensor | None) -> Tensor:
    return x if scale is None else x * scale[: x.shape[-1]]
