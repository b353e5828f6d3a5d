"""Elastic self-attention with 2-D relative positions, as in AutoFormer."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .elastic import ElasticLinear


def relative_index(grid: int, max_offset: int) -> tuple[Tensor, Tensor]:
    """Rows of the tables of :class:`RelativePosition2D`, for every pair of tokens.

    Token 0 is the class token; patch p sits in row ``p // grid`` and column ``p % grid``. The
    offset is key minus query, clipped to +-``max_offset``, shifted to 1..2R+1; pairs with the
    class token use row 0.

    Args:
        grid: Patches along a side.
        max_offset: R.

    Returns:
        Vertical and horizontal index, each (N, N) with N = grid**2 + 1, query first.
    """
    patch = torch.arange(grid * grid)

    def index(coordinate: Tensor) -> Tensor:
        offset = coordinate[None, :] - coordinate[:, None]
        table = torch.zeros(len(patch) + 1, len(patch) + 1, dtype=torch.long)
        table[1:, 1:] = offset.clamp(-max_offset, max_offset) + max_offset + 1
        return table

    return index(patch // grid), index(patch % grid)


def relative_attention(q: Tensor, k: Tensor, v: Tensor, rel_k: Tensor, rel_v: Tensor) -> Tensor:
    """softmax(s (q_i . k_j + q_i . RK_ij)) applied to v_j + RV_ij, with s = D**-0.5.

    Args:
        q, k, v: (B, H, N, D).
        rel_k, rel_v: Embeddings RK and RV of each pair, query first, (N, N, D).

    Returns:
        (B, H, N, D).
    """
    logits = q @ k.transpose(-2, -1) + torch.einsum('bhid,ijd->bhij', q, rel_k)
    attention = (logits * q.shape[-1] ** -0.5).softmax(dim=-1)
    return attention @ v + torch.einsum('bhij,ijd->bhid', attention, rel_v)


def without_key_gradient(bias: Tensor, width: int) -> Tensor:
    """The first 3 x ``width`` entries of a qkv bias, the key part cut from the graph.

    A key bias shifts all logits of a query alike, which the softmax ignores: its gradient is
    zero but for rounding. AdamW would scale that noise up to full steps, and into entries that
    subnets with another head count use as query or value biases.
    """
    query, key, value = bias[: 3 * width].view(3, width)
    return torch.cat([query, key.detach(), value])


class RelativePosition2D(nn.Module):
    """One embedding per vertical and one per horizontal offset, shared by all heads.

    Args:
        head_dim: Width D of an embedding.
        max_offset: Offset R at which positions are clipped.
        init_std: Standard deviation of the initial weights.
    """

    def __init__(self, head_dim: int, max_offset: int, init_std: float = 0.02):
        super().__init__()
        self.vertical = nn.Parameter(torch.empty(2 * max_offset + 2, head_dim))
        self.horizontal = nn.Parameter(torch.empty(2 * max_offset + 2, head_dim))
        nn.init.trunc_normal_(self.vertical, std=init_std)
        nn.init.trunc_normal_(self.horizontal, std=init_std)

    def forward(self, index: tuple[Tensor, Tensor]) -> Tensor:
        """Embedding of every pair of tokens, (N, N, D)."""
        return self.vertical[index[0]] + self.horizontal[index[1]]


class ElasticAttention(nn.Module):
    """Multi-head attention of which a subnet uses the first heads; the head width is fixed.

    Args:
        embed_dim: Full width C.
        num_heads: Full number of heads H.
        head_dim: Width D of a head.
        max_relative_position: Offset R at which relative positions are clipped.
        linear: Makes the linear layers, as ``linear(kind, in_features, out_features, parts=1)``
            with kind 'qkv' or 'proj'.
        init_std: Standard deviation of the initial position tables.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        head_dim: int,
        max_relative_position: int,
        linear: Callable[..., ElasticLinear],
        init_std: float = 0.02,
    ):
        super().__init__()
        self.head_dim = head_dim
        self.qkv = linear('qkv', embed_dim, num_heads * head_dim, parts=3)
        self.proj = linear('proj', num_heads * head_dim, embed_dim)
        self.rel_pos_k = RelativePosition2D(head_dim, max_relative_position, init_std)
        self.rel_pos_v = RelativePosition2D(head_dim, max_relative_position, init_std)

    def forward(self, x: Tensor, num_heads: int, rel_index: tuple[Tensor, Tensor]) -> Tensor:
        """Map (B, N, C) to (B, N, C) with the first ``num_heads`` heads."""
        B, N, C = x.shape
        inner = num_heads * self.head_dim
        bias = without_key_gradient(self.qkv.bias, inner)
        qkv = F.linear(x, self.qkv.sliced_weight(inner, C), bias)  # (B, N, 3 H D)
        q, k, v = qkv.view(B, N, 3, num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        y = relative_attention(q, k, v, self.rel_pos_k(rel_index), self.rel_pos_v(rel_index))
        return self.proj(y.transpose(1, 2).flatten(2), C)
