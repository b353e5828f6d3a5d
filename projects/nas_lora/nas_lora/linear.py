"""A frozen linear layer with NAS-LoRA: down, cell, up beside it."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tas_lora.checks import boolean, natural, positive, some_of
from tas_lora.errors import UserError

from .cell import SearchCell, initial_alpha
from .operations import OPERATIONS
from .registry import MODELS


class Branch(nn.Module):
    """Wd cell(We x) for one part of a layer's output.

    It starts as LoRA does: We uniform in +-1/sqrt(I), Wd zero. So the first update is zero, and so
    are the first gradients of We, of the cell and of its architecture parameters.

    Args:
        in_features: Width I of the input.
        out_features: Width O of the part.
        cell: A module (B, r, H, W) -> (B, r, H, W).
        rank: Rank r.
    """

    def __init__(self, in_features: int, out_features: int, cell: nn.Module, rank: int):
        super().__init__()
        self.down = nn.Linear(in_features, rank, bias=False)
        self.cell = cell
        self.up = nn.Linear(rank, out_features, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)

    def features(self, x: Tensor) -> Tensor:
        """cell(We x): (B, H, W, I) -> (B, H, W, r)."""
        return self.cell(self.down(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The update of the part: (B, H, W, I) -> (B, H, W, O)."""
        return self.up(self.features(x))


@MODELS.register_module()
class NASLoRALinear(nn.Module):
    """h = W0 x + Wd sum_i softmax(alpha)_i O_i(We x) (NAS-LoRA, arXiv 2512.03499).

    Tokens are (B, H, W, I), as SAM's blocks and windows have them, or (B, N, I). Of the latter the
    first ``extra_tokens`` are class tokens and such: each is a map of 1 x 1 of its own, mixed with
    no other token.

    Args:
        base: The layer to adapt. It is frozen.
        rank: Rank r; the paper has 3.
        ratio: Share of the r channels that enter the cell: 1 is NAS-LoRA; 2/3 is NAS-PC-LoRA, the
            paper's best.
        preset: What is inside the operations, 'linear' or 'darts'; not published.
        operations: The candidates; the paper's eight are taken for those of DARTS.
        parts: Names of the equal parts of the output, each with its own down, cell and up:
            ``('q', 'k', 'v')`` for a fused qkv, one name for a separate projection.
        adapted: The parts that are; by default all, as in the paper.
        share_alpha: One vector of architecture parameters for all parts instead of one each.
        choice: 'searched'; or, to compare with, a 'uniform' mixture or one 'random' operation.
        alpha_std: Standard deviation of the first architecture parameters; the paper has 0.001.
        scale: Factor of the update. The paper writes none.
        grid: Height and width of (B, N, I) inputs, or one number for both; by default a square.
        extra_tokens: Tokens of (B, N, I) inputs that come before those of the grid.

    Raises:
        UserError: If an argument is out of range, or ``base`` is no linear layer.
    """

    def __init__(
        self,
        base: nn.Linear,
        rank: int = 3,
        ratio: float = 1.0,
        preset: str = 'linear',
        operations: Sequence[str] = OPERATIONS,
        parts: Sequence[str] = ('q', 'k', 'v'),
        adapted: Sequence[str] | None = None,
        share_alpha: bool = False,
        choice: str = 'searched',
        alpha_std: float = 1e-3,
        scale: float = 1.0,
        grid: int | Sequence[int] | None = None,
        extra_tokens: int = 0,
    ):
        super().__init__()
        self.base = check_linear(base, 'NASLoRALinear').requires_grad_(False)
        self.parts = _check_parts(parts, base.out_features)
        adapted = self.parts if adapted is None else some_of(adapted, 'adapted', self.parts)
        self.scale = positive(scale, 'scale', float)
        self.grid = _check_grid(grid)
        self.extra_tokens = natural(extra_tokens, 'extra_tokens')
        self.rank = positive(rank, 'rank', int, most=min(base.in_features, base.out_features))

        operations = some_of(operations, 'operations', OPERATIONS)
        boolean(share_alpha, 'share_alpha')
        width, alpha = base.out_features // len(self.parts), None
        self.branches = nn.ModuleDict()
        for part in adapted:
            if alpha is None or not share_alpha:
                alpha = initial_alpha(len(operations), choice, alpha_std)
            cell = SearchCell(rank, ratio, preset, operations, alpha)
            self.branches[part] = Branch(base.in_features, width, cell, rank)
        self.branches.to(base.weight)

    def forward(self, x: Tensor) -> Tensor:
        """W0 x and the update.

        Args:
            x: (B, H, W, I) or (B, N, I).

        Returns:
            The same shape, O wide.

        Raises:
            UserError: If N tokens do not make the grid.
        """
        updates = [
            self._on_map(m).reshape(len(x), -1, self.base.out_features) for m in self.maps(x)
        ]
        y = self.base(x)
        return y + self.scale * torch.cat(updates, dim=1).reshape(y.shape)

    def maps(self, x: Tensor) -> list[Tensor]:
        """The maps (B', H, W, I) that an input consists of: extra tokens, if any, and the grid."""
        if x.ndim == 4:
            return [x]
        B, N, I = x.shape  # noqa: E741  the width of the input
        height, width = self._grid_of(N - self.extra_tokens)
        grid = x[:, self.extra_tokens :].reshape(B, height, width, I)
        extra = x[:, : self.extra_tokens].reshape(-1, 1, 1, I)
        return [extra, grid] if self.extra_tokens else [grid]

    def _on_map(self, x: Tensor) -> Tensor:
        """The updates of all parts side by side, (B', H, W, O)."""
        nothing = x.new_zeros(*x.shape[:-1], self.base.out_features // len(self.parts))
        return torch.cat(
            [self.branches[p](x) if p in self.branches else nothing for p in self.parts], dim=-1
        )

    def _grid_of(self, tokens: int) -> tuple[int, int]:
        side = math.isqrt(max(tokens, 0))
        height, width = self.grid or (side, side)
        if height * width != tokens or not tokens:
            raise UserError(
                f'grid: {tokens} tokens beside {self.extra_tokens} extra ones are no map of '
                f'{height} x {width}; set grid=(height, width) or extra_tokens'
            )
        return height, width


def check_linear(layer: nn.Module, adapter: str) -> nn.Linear:
    """``layer`` if it is an ``nn.Linear``; raises :class:`UserError`."""
    if not isinstance(layer, nn.Linear):
        raise UserError(
            f'targets: {adapter} adapts an nn.Linear, got a {type(layer).__name__}; '
            'choose the linear layers themselves'
        )
    return layer


def _check_parts(parts: Sequence[str], out_features: int) -> tuple[str, ...]:
    names = tuple(parts) if isinstance(parts, list | tuple) else ()
    if not names or len(set(names)) < len(names) or not all(map(_is_name, names)):
        raise UserError(
            f"parts must be different names, such as ('q', 'k', 'v') or ('v',), got {parts!r}"
        )
    if out_features % len(names):
        raise UserError(
            f'parts: {out_features} outputs are not {len(names)} equal parts {names}; '
            "name one, such as parts=('out',)"
        )
    return names


def _is_name(part) -> bool:
    return isinstance(part, str) and part.isidentifier()


def _check_grid(grid) -> tuple[int, int] | None:
    if grid is None:
        return None
    sides = grid if isinstance(grid, list | tuple) else (grid, grid)
    if len(sides) != 2:
        raise UserError(f'grid must be a side or (height, width), got {grid!r}')
    return tuple(positive(side, 'grid', int) for side in sides)
