"""The transformer of SAM's mask decoder: tokens attend to the image, and the image to the tokens.

Modules are named as in Meta's files, so their weights load without renaming.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class ReducedAttention(nn.Module):
    """Attention between two sets of vectors, in a reduced number of channels.

    Args:
        embed_dim: Channels D of both sets.
        num_heads: Heads; they divide ``embed_dim / reduction``.
        reduction: D divided by the number of attention channels.
    """

    def __init__(self, embed_dim: int, num_heads: int, reduction: int = 1):
        super().__init__()
        self.num_heads = num_heads
        inner = embed_dim // reduction
        self.q_proj = nn.Linear(embed_dim, inner)
        self.k_proj = nn.Linear(embed_dim, inner)
        self.v_proj = nn.Linear(embed_dim, inner)
        self.out_proj = nn.Linear(inner, embed_dim)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend from ``query`` (B, M, D) to ``key`` and ``value`` (B, N, D); returns (B, M, D)."""
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        # B, heads, N, D / heads
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        found = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(found.transpose(1, 2).flatten(2))


class TokenMLP(nn.Module):
    """Two linear layers with a ReLU between.

    Args:
        embed_dim: Input and output channels D.
        hidden_dim: Hidden channels.
    """

    def __init__(self, embed_dim: int, hidden_dim: int):
        super().__init__()
        self.lin1 = nn.Linear(embed_dim, hidden_dim)
        self.lin2 = nn.Linear(hidden_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        return self.lin2(self.lin1(x).relu())


class TwoWayBlock(nn.Module):
    """Token self-attention, tokens to image, MLP, image to tokens; each followed by a norm.

    Args:
        embed_dim: Channels D.
        num_heads: Attention heads.
        mlp_dim: Width of the MLP.
        is_first: In the first block the tokens equal their positions; self-attention replaces them.
    """

    def __init__(self, embed_dim: int, num_heads: int, mlp_dim: int, is_first: bool):
        super().__init__()
        self.is_first = is_first
        self.self_attn = ReducedAttention(embed_dim, num_heads)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.cross_attn_token_to_image = ReducedAttention(embed_dim, num_heads, reduction=2)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.mlp = TokenMLP(embed_dim, mlp_dim)
        self.norm3 = nn.LayerNorm(embed_dim)
        self.norm4 = nn.LayerNorm(embed_dim)
        self.cross_attn_image_to_token = ReducedAttention(embed_dim, num_heads, reduction=2)

    def forward(
        self, tokens: Tensor, pixels: Tensor, token_place: Tensor, pixel_place: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Update tokens (B, T, D) and pixels (B, N, D).

        ``token_place`` and ``pixel_place`` are added to queries and keys of each attention, except
        in the first block's self-attention.
        """
        if self.is_first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            placed = tokens + token_place
            tokens = tokens + self.self_attn(placed, placed, tokens)
        tokens = self.norm1(tokens)
        placed_pixels = pixels + pixel_place
        seen = self.cross_attn_token_to_image(tokens + token_place, placed_pixels, pixels)
        tokens = self.norm2(tokens + seen)
        tokens = self.norm3(tokens + self.mlp(tokens))
        seen = self.cross_attn_image_to_token(placed_pixels, tokens + token_place, tokens)
        return tokens, self.norm4(pixels + seen)


class TwoWayTransformer(nn.Module):
    """Blocks, then a final attention of the tokens to the image.

    Args:
        embed_dim: Channels D.
        depth: Number of blocks.
        num_heads: Attention heads; they divide D / 2.
        mlp_dim: Width of the MLPs.
    """

    def __init__(self, embed_dim: int, depth: int, num_heads: int, mlp_dim: int):
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayBlock(embed_dim, num_heads, mlp_dim, is_first=i == 0) for i in range(depth)
        )
        self.final_attn_token_to_image = ReducedAttention(embed_dim, num_heads, reduction=2)
        self.norm_final_attn = nn.LayerNorm(embed_dim)

    def forward(self, tokens: Tensor, pixels: Tensor, pixel_place: Tensor) -> tuple[Tensor, Tensor]:
        """Update tokens (B, T, D) and pixels (B, N, D); shapes stay the same."""
        token_place = tokens
        for layer in self.layers:
            tokens, pixels = layer(tokens, pixels, token_place, pixel_place)
        seen = self.final_attn_token_to_image(tokens + token_place, pixels + pixel_place, pixels)
        return self.norm_final_attn(tokens + seen), pixels
