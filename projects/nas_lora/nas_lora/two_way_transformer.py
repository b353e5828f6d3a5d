"""The transformer of SAM's mask decoder: tokens look at the image, and the image at the tokens.

Modules are named as in Meta's files, so that their weights fit without renaming.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class ReducedAttention(nn.Module):
    """Attention between two sets of vectors, in fewer channels than they have.

    Args:
        embed_dim: Channels D of both sets.
        num_heads: Heads; they divide ``embed_dim / reduction``.
        reduction: D over the channels in which is compared.
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
        """What each of ``query`` (B, M, D) finds in ``key`` and ``value`` (B, N, D): (B, M, D)."""
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        # B, heads, N, D / heads
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        found = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(found.transpose(1, 2).flatten(2))


class TokenMLP(nn.Module):
    """Two linear maps and a ReLU.

    Args:
        embed_dim: Channels D in and out.
        hidden_dim: Channels between.
    """

    def __init__(self, embed_dim: int, hidden_dim: int):
        super().__init__()
        self.lin1 = nn.Linear(embed_dim, hidden_dim)
        self.lin2 = nn.Linear(hidden_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        return self.lin2(self.lin1(x).relu())


class TwoWayBlock(nn.Module):
    """Self-attention of the tokens, tokens to image, MLP, image to tokens; each with its norm.

    Args:
        embed_dim: Channels D.
        num_heads: Attention heads.
        mlp_dim: Width of the MLP.
        is_first: The tokens are still their own positions; their self-attention takes their place.
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
        """Tokens (B, T, D) and pixels (B, N, D), each after the other was looked at.

        ``token_place`` and ``pixel_place`` are added to both wherever they are compared.
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
    """Blocks, and a last look of the tokens at the image.

    Args:
        embed_dim: Channels D.
        depth: Blocks.
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
        """Tokens (B, T, D) and pixels (B, N, D), changed; shapes as they came."""
        token_place = tokens
        for layer in self.layers:
            tokens, pixels = layer(tokens, pixels, token_place, pixel_place)
        seen = self.final_attn_token_to_image(tokens + token_place, pixels + pixel_place, pixels)
        return self.norm_final_attn(tokens + seen), pixels
