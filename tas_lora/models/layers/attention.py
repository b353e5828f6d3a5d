"""Elastic self-attention, with 2-D relative positions as in AutoFormer, or without.

:func:`relative_attention` is the definition, and the reference of the tests;
:func:`fused_relative_attention` computes the same as one attention without positions.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .elastic import ElasticLinear
from .gathered import gathered_product

_LOGITS_AT_ONCE = 2**21  # 4 MiB in bfloat16, which fits into a CPU cache


def relative_index(grid: int, max_offset: int) -> tuple[Tensor, Tensor]:
    """Row in the tables of :class:`RelativePosition2D` for every pair of tokens.

    Token 0 is the class token; patch p sits in row ``p // grid`` and column ``p % grid``. The
    offset is key minus query, clipped to +-``max_offset`` and shifted to 1..2R+1. Pairs with the
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


def token_index(grid: int, max_offset: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Indices of the grid for :func:`fused_relative_attention`.

    Every token has W entries: one for each row of patches, one for each column of patches, and
    padding that makes ``head_dim`` + W a multiple of 16, which is fast in kernels.

    Args:
        grid: Patches along a side, G.
        max_offset: R.
        head_dim: D.

    Returns:
        Index (N, W) into :func:`tables_from_class_token`: the offset from the token to
        each row and column of patches; 0 for the class token and for padding. Marks (N, W): 1 at
        the row and the column of a token, none for the class token.
    """
    line, patch = torch.arange(grid), torch.arange(grid * grid)
    rows, columns = patch // grid, patch % grid

    def offsets(place: Tensor) -> Tensor:
        return (line - place[:, None]).clamp(-max_offset, max_offset) + max_offset + 1

    index = torch.cat([offsets(rows), offsets(columns) + 2 * max_offset + 2], dim=1)
    marks = torch.cat([F.one_hot(rows, grid), F.one_hot(columns, grid)], dim=1).float()
    padding = (0, -(head_dim + 2 * grid) % 16, 1, 0)
    return F.pad(index, padding), F.pad(marks, padding)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(scale q k^T) v by torch's kernel, except for bfloat16 on a CPU without gradients.

    There the kernel is as slow as in float32 (on an EPYC with AVX512-BF16). Two products take 0.55
    to 0.65 of its time, on a few images at a time so that their logits stay in cache. They round
    logits to bfloat16, by up to 2**-8 of their size, where the kernel keeps them exact.

    Args:
        q, k, v: (B, H, N, D).
        scale: Factor on the logits.
    """
    is_low = q.dtype == torch.bfloat16 and q.device.type == 'cpu'
    if not is_low or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    images = max(1, _LOGITS_AT_ONCE // (q.shape[1] * q.shape[2] ** 2))
    parts = zip(*(x.split(images) for x in (q * scale, k, v)), strict=True)
    return torch.cat([(q @ k.transpose(-2, -1)).softmax(dim=-1) @ v for q, k, v in parts])


def fused_relative_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rel_k: Tensor,
    rel_v: Tensor,
    cls_v: Tensor,
    rel_index: tuple[Tensor, Tensor],
) -> Tensor:
    """Compute :func:`relative_attention` exactly, as one attention over wider heads.

    Softmax ignores what all keys of a query share, so RK_ij may be taken relative to the class
    token's. What is left is one vector for the row of j and one for its column. Queries are
    extended by their products with these vectors, keys by the marks of their row and column, so
    that the product of both is the logit. Values are also extended by the marks. The output then
    holds how much attention each row and column got, which weights their value vectors.

    Args:
        q, k, v: (B, H, N, D).
        rel_k, rel_v: Key and value vectors of every vertical and horizontal offset, relative to
            the class token's: (4R + 4, D).
        cls_v: The class token's value vector, (D,).
        rel_index: From :func:`token_index`.

    Returns:
        (B, H, N, D).
    """
    D, (index, marks) = q.shape[-1], rel_index
    marks = marks.to(q.dtype).expand(*q.shape[:2], -1, -1)
    seen = gathered_product(q, rel_k, index, transposed=True)
    wide = (torch.cat([x, more.to(q.dtype)], -1) for x, more in ((q, seen), (k, marks), (v, marks)))
    y = softmax_attention(*wide, scale=D**-0.5)  # (B, H, N, D + W)
    return y[..., :D] + gathered_product(y[..., D:], rel_v, index) + cls_v.to(y.dtype)


def without_key_gradient(bias: Tensor, width: int) -> Tensor:
    """The first 3 x ``width`` entries of a qkv bias, with the key part detached.

    A key bias shifts all logits of a query alike, which the softmax ignores: its gradient is
    zero except for rounding. AdamW would scale that noise up to full steps, in entries that
    subnets with another number of heads use as query or value biases.
    """
    bias = bias[: 3 * width]
    if not bias.requires_grad:  # frozen, or in evaluation: spare the copy
        return bias
    query, key, value = bias.view(3, width)
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
        """Embedding of every pair of tokens, (N, N, D), from :func:`relative_index`."""
        return self.vertical[index[0]] + self.horizontal[index[1]]


def tables_from_class_token(
    keys: RelativePosition2D, values: RelativePosition2D
) -> tuple[Tensor, Tensor, Tensor]:
    """Tables for :func:`fused_relative_attention`.

    Returns:
        Vertical and horizontal table of the keys, (4R + 4, D), each relative to its row 0, the
        class token's; those of the values; and the embedding of a value of the class token, (D,).
    """
    # Stacked, as a GPU takes longer to start an operation than for tables of this size.
    tables = torch.stack([keys.vertical, keys.horizontal, values.vertical, values.horizontal])
    rel_k, rel_v = (tables - tables[:, :1]).unflatten(0, (2, 2)).flatten(1, 2)
    return rel_k, rel_v, tables[2:, 0].sum(dim=0)


class ElasticAttention(nn.Module):
    """Multi-head attention of which a subnet uses the first heads, of fixed width.

    Args:
        embed_dim: Full width C.
        num_heads: Full number of heads H.
        head_dim: Width D of a head.
        max_relative_position: Offset R at which relative positions are clipped; None for
            attention without them.
        linear: Makes the linear layers, as ``linear(kind, in_features, out_features, parts=1)``
            with kind 'qkv' or 'proj'.
        init_std: Standard deviation of the initial position tables.
        bias_by_part: As in :class:`ElasticLinear`, for query, key and value.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        head_dim: int,
        max_relative_position: int | None,
        linear: Callable[..., ElasticLinear],
        init_std: float = 0.02,
        bias_by_part: bool = False,
    ):
        super().__init__()
        self.head_dim, inner = head_dim, num_heads * head_dim
        self.qkv = linear('qkv', embed_dim, inner, parts=3)
        self.qkv.bias_by_part = bias_by_part
        self.proj = linear('proj', inner, embed_dim)
        self.has_tables = max_relative_position is not None
        if self.has_tables:
            self.rel_pos_k = RelativePosition2D(head_dim, max_relative_position, init_std)
            self.rel_pos_v = RelativePosition2D(head_dim, max_relative_position, init_std)

    def forward(
        self, x: Tensor, num_heads: int, rel_index: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Map (B, N, C) to (B, N, C) with the first ``num_heads`` heads.

        Args:
            x: (B, N, C).
            num_heads: H.
            rel_index: From :func:`token_index`; not used without relative positions.
        """
        B, N, C = x.shape
        inner = num_heads * self.head_dim
        bias = None if self.qkv.bias_by_part else without_key_gradient(self.qkv.bias, inner)
        qkv = self.qkv(x, inner, bias)  # (B, N, 3 H D)
        q, k, v = qkv.view(B, N, 3, num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        y = self.attend(q, k, v, rel_index)
        return self.proj(y.transpose(1, 2).flatten(2), C)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, rel_index: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """Attention of each head; all of shape (B, H, N, D)."""
        if not self.has_tables:
            return softmax_attention(q, k, v, scale=self.head_dim**-0.5)
        tables = tables_from_class_token(self.rel_pos_k, self.rel_pos_v)
        return fused_relative_attention(q, k, v, *tables, rel_index)
