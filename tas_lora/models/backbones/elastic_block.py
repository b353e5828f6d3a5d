"""The block of the elastic vision transformer."""

from collections.abc import Callable, Iterator

import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn

from ..layers import ElasticAttention, ElasticLayerNorm, ElasticLinear


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
        """The first branch, (B, N, C) to itself."""
        return self.attn(self.attn_norm(x), num_heads, rel_index)

    def mlp(self, x: Tensor, hidden_dim: int) -> Tensor:
        """The second branch, (B, N, C) to itself."""
        return self.fc2(F.gelu(self.fc1(self.ffn_norm(x), hidden_dim)), x.shape[-1])

    def sliced_linears(
        self, embed_dim: int, num_heads: int, hidden_dim: int
    ) -> Iterator[tuple[ElasticLinear, int, int]]:
        """Each linear layer with the (output, input) widths a subnet uses of it.

        In the order of ``LAYER_KINDS``, which is the router's.
        """
        inner = num_heads * self.attn.head_dim
        yield self.attn.qkv, inner, embed_dim
        yield self.attn.proj, embed_dim, inner
        yield self.fc1, hidden_dim, embed_dim
        yield self.fc2, embed_dim, hidden_dim
