"""Positions of patches: absolute ones in the finest grid, and relative ones to each other."""

import torch
from torch import Tensor, nn

from .attention import token_index


def finest_positions(grid: int, finest: int, prefix: int = 1) -> Tensor:
    """Map each token of a grid to the token of the finest grid that contains its centre.

    Args:
        grid: Patches along a side, at most ``finest``.
        finest: Patches along a side of the finest grid, which has the supernet's positions.
        prefix: Rows of the position embedding before those of the patches.

    Returns:
        (prefix + grid**2,) rows of the position embedding.
    """
    line = (2 * torch.arange(grid) + 1) * finest // (2 * grid)
    patches = line[:, None] * finest + line + prefix
    return torch.cat([torch.arange(prefix), patches.flatten()])


class PatchGrid(nn.Module):
    """Position indices of a grid of G x G patches; it has no parameters.

    Args:
        grid: Patches along a side, G.
        finest: Patches along a side of the supernet's finest grid.
        max_offset: Offset R at which relative positions are clipped, in patches of this grid;
            None without them.
        head_dim: Width D of a head.
        prefix: Rows of the position embedding before those of the patches.
    """

    def __init__(
        self, grid: int, finest: int, max_offset: int | None, head_dim: int, prefix: int = 1
    ):
        super().__init__()
        if max_offset is None:
            index = marks = None
        else:
            index, marks = token_index(grid, max_offset, head_dim)
        self.register_buffer('rel_index', index, persistent=False)
        self.register_buffer('rel_marks', marks, persistent=False)
        positions = None if grid == finest else finest_positions(grid, finest, prefix)
        self.register_buffer('positions', positions, persistent=False)  # None: all, in order

    def positions_in(self, pos_embed: Tensor) -> Tensor:
        """Select this grid's tokens from the supernet's embedding, (1, rows, C)."""
        return pos_embed if self.positions is None else pos_embed[:, self.positions]
