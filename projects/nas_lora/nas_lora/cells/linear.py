"""A frozen linear layer with a parallel NAS-LoRA branch: down, cell, up."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tas_lora.checks import boolean, positive, some_of
from tas_lora.errors import UserError

from ..registry import MODELS
from .batched import mixing
from .cell import SearchCell, initial_alpha
from .operations import OPERATIONS
from .token_maps import TokenMaps


class Branch(nn.Module):
    """Wd cell(We x) for one part of a layer's output.

    It is initialised as LoRA: We uniform in +-1/sqrt(I), Wd zero. So the first update is zero, as
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
        """The update of the part: (B, H, W, I) -> (B, H, W, O).

        A layer computes the same for all its parts at once.
        """
        return self.up(self.features(x))


@MODELS.register_module()
class NASLoRALinear(nn.Module):
    """h = W0 x + Wd sum_i softmax(alpha)_i O_i(We x) (NAS-LoRA, arXiv 2512.03499).

    Tokens are (B, H, W, I), as in SAM's blocks and windows, or (B, N, I). In (B, N, I) the first
    ``extra_tokens`` are class tokens and the like: each is a 1 x 1 map and mixes with no other.

    Args:
        base: The layer to adapt. It is frozen.
        rank: Rank r; 3 in the paper.
        ratio: Share of the r channels that enter the cell: 1 is NAS-LoRA; 2/3 is NAS-PC-LoRA, the
            paper's best.
        preset: Kind of the operations, 'linear' or 'darts'; not published.
        operations: The candidates. The paper's eight are assumed to be those of DARTS.
        parts: Names of the equal parts of the output, each with its own down, cell and up:
            ``('q', 'k', 'v')`` for a fused qkv, one name for a separate projection.
        adapted: The parts to adapt; by default all, as in the paper.
        share_alpha: One vector of architecture parameters for all parts instead of one each.
        choice: 'searched', or as a baseline a 'uniform' mixture or one 'random' operation.
        alpha_std: Standard deviation of the initial architecture parameters; 0.001 in the paper.
        scale: Factor of the update; the paper has none.
        grid: Height and width of (B, N, I) inputs, or one number for both; by default a square.
        extra_tokens: Number of tokens before the grid in (B, N, I) inputs.

    Raises:
        UserError: If an argument is out of range, or ``base`` is not a linear layer.
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
        self.token_maps = TokenMaps(grid, extra_tokens)
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
        place = torch.tensor([[part == name for part in self.parts] for name in adapted])
        place = place[:, None, :, None].to(base.weight.device)
        self.register_buffer('place', place, persistent=False)
        self.branches.to(base.weight)

    def forward(self, x: Tensor) -> Tensor:
        """W0 x plus the update.

        Args:
            x: (B, H, W, I) or (B, N, I).

        Returns:
            The same shape with O channels.

        Raises:
            UserError: If N tokens do not form the grid.
        """
        y = self.base(x)
        # In float32 under autocast too: the maps are small, and kernels are made of many numbers.
        z = F.linear(x, torch.cat([branch.down.weight for branch in self.branches.values()]))
        with torch.autocast(x.device.type, enabled=False):
            mixed, up = self._mixed(z), self._up()
        rows = y.flatten(0, -2), mixed.flatten(0, -2).to(y.dtype), up.to(y.dtype)
        return torch.addmm(*rows, alpha=self.scale).view(y.shape)

    def by_definition(self, x: Tensor) -> Tensor:
        """What :meth:`forward` computes, part by part and operation by operation."""
        y, width = self.base(x), self.base.out_features // len(self.parts)
        updates = []
        for each in self.maps(x):
            zeros = each.new_zeros(*each.shape[:-1], width)
            found = {part: branch(each) for part, branch in self.branches.items()}
            updates.append(torch.cat([found.get(part, zeros) for part in self.parts], dim=-1))
        return y + self.scale * self.token_maps.join(updates, y)

    def _mixed(self, z: Tensor) -> Tensor:
        """Send the low-rank maps (..., P r) of the P adapted parts through their cells."""
        branches = list(self.branches.values())
        z = z.to(branches[0].down.weight.dtype)
        mix = mixing([branch.cell for branch in branches], self.rank)
        return self.token_maps.join([mix(each) for each in self.maps(z)], z)

    def _up(self) -> Tensor:
        """The up projections of the P adapted parts as one, (P r, O); zeros elsewhere.

        Its rows are contiguous: with columns, MKL takes three times as long for the gradients of
        the product in float32.
        """
        ups = torch.stack([branch.up.weight.T for branch in self.branches.values()])
        return (ups[:, :, None] * self.place).reshape(-1, self.base.out_features)

    def maps(self, x: Tensor) -> list[Tensor]:
        """Split an input into maps (B', H, W, I): extra tokens, if any, and the grid."""
        return self.token_maps.split(x)


def check_linear(layer: nn.Module, adapter: str) -> nn.Linear:
    """Return ``layer`` if it is an ``nn.Linear``, else raise :class:`UserError`."""
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
