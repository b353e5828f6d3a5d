"""An exported subnet as an ordinary vision transformer. Needs torch and safetensors, no more."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

FORMAT = 'tas_lora.plain_vit/1'


class PlainAttention(nn.Module):
    """Multi-head self-attention with AutoFormer's 2-D relative positions.

    Args:
        width: C.
        num_heads: H.
        head_dim: D.
        max_offset: Offset R at which relative positions are clipped.
    """

    def __init__(self, width: int, num_heads: int, head_dim: int, max_offset: int):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_dim
        self.qkv = nn.Linear(width, 3 * num_heads * head_dim)
        self.proj = nn.Linear(num_heads * head_dim, width)
        rows = 2 * max_offset + 2  # row 0: pairs with the class token
        self.key_rows = nn.Parameter(torch.zeros(rows, head_dim))
        self.key_columns = nn.Parameter(torch.zeros(rows, head_dim))
        self.value_rows = nn.Parameter(torch.zeros(rows, head_dim))
        self.value_columns = nn.Parameter(torch.zeros(rows, head_dim))

    def forward(self, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Map (B, N, C) to itself; ``rows`` and ``columns`` are table indices (N, N)."""
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, N, D)
        rel_k = self.key_rows[rows] + self.key_columns[columns]  # (N, N, D)
        rel_v = self.value_rows[rows] + self.value_columns[columns]
        # Per query: one product against all positions, (N, B H, D) x (N, D, N).
        by_query = q.flatten(0, 1).transpose(0, 1)
        position = (by_query @ rel_k.transpose(1, 2)).transpose(0, 1).unflatten(0, q.shape[:2])
        weights = ((q @ k.transpose(2, 3) + position) * self.head_dim**-0.5).softmax(-1)
        by_query = weights.flatten(0, 1).transpose(0, 1)
        position = (by_query @ rel_v).transpose(0, 1).unflatten(0, q.shape[:2])
        return self.proj((weights @ v + position).transpose(1, 2).flatten(2))


class PlainBlock(nn.Module):
    """Pre-norm block of :class:`PlainAttention` and an MLP of width ``hidden``."""

    def __init__(self, width: int, num_heads: int, head_dim: int, max_offset: int, hidden: int):
        super().__init__()
        self.attn_norm = nn.LayerNorm(width)
        self.attn = PlainAttention(width, num_heads, head_dim, max_offset)
        self.ffn_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Map (B, N, C) to itself."""
        x = x + self.attn(self.attn_norm(x), rows, columns)
        return x + self.fc2(F.gelu(self.fc1(self.ffn_norm(x))))


class PlainViT(nn.Module):
    """A vision transformer of fixed size: images (B, channels, side, side) to logits.

    Args:
        embed_dim: Width C.
        num_heads: Heads of each block.
        hidden_dims: MLP width of each block.
        img_size: Side of the image in pixels.
        patch_size: Side of a patch in pixels.
        in_channels: Image channels.
        num_classes: Number of logits.
        head_dim: Width of a head.
        max_relative_position: Offset at which relative positions are clipped.
        pooling: 'avg_featmap' or 'cls_token'.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: list[int],
        hidden_dims: list[int],
        img_size: int,
        patch_size: int,
        in_channels: int,
        num_classes: int,
        head_dim: int,
        max_relative_position: int,
        pooling: str,
    ):
        super().__init__()
        grid, self.pooling = img_size // patch_size, pooling
        self.patch_embed = nn.Conv2d(in_channels, embed_dim, patch_size, stride=patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, grid**2 + 1, embed_dim))
        self.blocks = nn.ModuleList(
            PlainBlock(embed_dim, heads, head_dim, max_relative_position, hidden)
            for heads, hidden in zip(num_heads, hidden_dims, strict=True)
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.head = nn.Linear(embed_dim, num_classes)
        patch = torch.arange(grid**2)
        for name, position in (('rows', patch // grid), ('columns', patch % grid)):
            offset = (position[None, :] - position[:, None]).clamp(
                -max_relative_position, max_relative_position
            )
            index = F.pad(offset + max_relative_position + 1, (1, 0, 1, 0))  # class token: row 0
            self.register_buffer(name, index, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of normalised images."""
        x = self.patch_embed(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x, self.rows, self.columns)
        x = self.norm(x)
        return self.head(x[:, 0] if self.pooling == 'cls_token' else x[:, 1:].mean(dim=1))


def load_plain_vit(folder: str | Path) -> tuple[PlainViT, dict]:
    """Load what ``tools/export.py`` wrote.

    Args:
        folder: Holds ``architecture.json`` and ``weights.safetensors``.

    Returns:
        The network in evaluation mode, and the whole content of the JSON; its ``preprocess``
        says how to normalise images.
    """
    description = json.loads((Path(folder) / 'architecture.json').read_text())
    if description['format'] != FORMAT:
        raise ValueError(f'{folder} is of format {description["format"]}, expected {FORMAT}')
    model = PlainViT(**description['network'])
    model.load_state_dict(load_file(Path(folder) / 'weights.safetensors'))
    return model.eval(), description
