"""Positions of patches: absolute ones in the finest grid, and relative ones to each other."""

import torch
from torch import Tensor, nn

from .attention import token_index


def finest_positions(grid: int, finest: int) -> Tensor:
    """Map each token of a grid to the token of the finest grid that contains its centre.

    Args:
        grid: Patches along a side, at most ``finest``.
        finest: Patches along a side of the finest grid, which has the supernet's positions.

    Returns:
        (grid**2 + 1,) token indices; the class token, 0, is first.
    """
    line = (2 * torch.arange(grid) + 1) * finest // (2 * grid)
    patches = line[:, None] * finest + line + 1
    return torch.cat([torch.zeros(1, dtype=torch.long), patches.flatten()])


class PatchGrid(nn.Module):
    """Position indices of a grid of G x G patches; it has no parameters.

    Args:
        grid: Patches along a side, G.
        finest: Patches along a side of the supernet's finest grid.
        max_offset: Offset R at which relative positions are clipped, in patches of this grid.
        head_dim: Width D of a head.
    """

    def __init__(self, grid: int, finest: int, max_offset: int, head_dim: int):
        super().__init__()
        index, marks = token_index(grid, max_offset, head_dim)
        self.register_buffer('rel_index', index, persistent=False)
        self.register_buffer('rel_marks', marks, persistent=False)
        positions = None if grid == finest else finest_positions(grid, finest)
        self.register_buffer('positions', positions, persistent=False)  # None: all, in order

    def positions_in(self, pos_embed: Tensor) -> Tensor:
        """Select this grid's tokens from the supernet's embedding, (1, finest**2 + 1, C)."""
        return pos_embed if self.positions is None else pos_embed[:, self.positions]
