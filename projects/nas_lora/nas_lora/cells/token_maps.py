"""Tokens of a vision transformer as maps, and back."""

import math

import torch
from torch import Tensor

from tas_lora.checks import natural, positive
from tas_lora.errors import UserError


class TokenMaps:
    """Splits tokens into maps that do not mix, and joins them again.

    (B, H, W, C), as in SAM's blocks and windows, is a map already. In (B, N, C), of images or of
    windows, the first ``extra_tokens`` are class tokens and the like: each is a 1 x 1 map. The
    others are the rows of the grid.

    Args:
        grid: Height and width of the grid in (B, N, C), or one number for both; by default it is a
            square of as many tokens as there are, so images that are no squares need it.
        extra_tokens: Number of tokens before the grid in (B, N, C).

    Raises:
        UserError: If an argument is out of range.
    """

    def __init__(self, grid: int | tuple[int, int] | None = None, extra_tokens: int = 0):
        self.grid = _check_grid(grid)
        self.extra_tokens = natural(extra_tokens, 'extra_tokens')

    def split(self, x: Tensor) -> list[Tensor]:
        """Maps (B', H, W, C) of the tokens: the grid last, before it the extra tokens, if any.

        Raises:
            UserError: If the tokens do not form the grid.
        """
        if x.ndim == 4:
            return [x]
        B, N, C = x.shape
        height, width = self._grid_of(N - self.extra_tokens)
        grid = x[:, self.extra_tokens :].reshape(B, height, width, C)
        extra = x[:, : self.extra_tokens].reshape(-1, 1, 1, C)
        return [extra, grid] if self.extra_tokens else [grid]

    def join(self, maps: list[Tensor], like: Tensor) -> Tensor:
        """The tokens of such maps (B', H, W, O), in the order and shape of ``like``."""
        width = maps[0].shape[-1]
        tokens = [each.reshape(like.shape[0], -1, width) for each in maps]
        return torch.cat(tokens, dim=1).reshape(*like.shape[:-1], width)

    def _grid_of(self, tokens: int) -> tuple[int, int]:
        side = math.isqrt(max(tokens, 0))
        height, width = self.grid or (side, side)
        if height * width != tokens or not tokens:
            raise UserError(
                f'grid: {tokens} tokens after {self.extra_tokens} extra ones do not form a map of '
                f'{height} x {width}; set grid=(height, width) or extra_tokens'
            )
        return height, width


def _check_grid(grid) -> tuple[int, int] | None:
    if grid is None:
        return None
    sides = grid if isinstance(grid, list | tuple) else (grid, grid)
    if len(sides) != 2:
        raise UserError(f'grid must be a side or (height, width), got {grid!r}')
    return tuple(positive(side, 'grid', int) for side in sides)
