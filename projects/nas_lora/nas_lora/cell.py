"""The searchable cell: a mixture of operations on the low-rank map of a LoRA."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tas_lora.checks import bounded, one_of, positive, some_of
from tas_lora.errors import UserError

from .operations import OPERATIONS, PRESETS, Operation, build_operation

CHOICES = ('searched', 'uniform', 'random')


def initial_alpha(count: int, choice: str = 'searched', std: float = 1e-3) -> Tensor:
    """Architecture parameters of ``count`` operations.

    Args:
        count: Number of operations n.
        choice: 'searched': trainable, drawn from N(0, std^2). The other two are fixed baselines:
            'uniform', with all equal, and 'random', with a single drawn operation.
        std: Standard deviation; 0.001 in the paper.

    Returns:
        (n,), an ``nn.Parameter`` if searched. Operations that are not drawn get minus infinity.
    """
    one_of(choice, 'choice', CHOICES)
    bounded(std, 'alpha_std')
    if choice == 'searched':
        return nn.Parameter(torch.randn(count) * std)
    if choice == 'uniform':
        return torch.zeros(count)
    return torch.where(torch.arange(count) == torch.randint(count, ()), 0.0, -torch.inf)


def cell_channels(rank: int, ratio: float) -> int:
    """Number of channels that enter the cell, the nearest integer to ``rank * ratio``.

    Raises:
        UserError: If ``ratio`` is not in (0, 1], or leaves no channel.
    """
    channels = round(positive(rank, 'rank', int) * bounded(ratio, 'ratio'))
    if channels < 1:
        raise UserError(
            f'ratio {ratio:g} leaves no channel of rank {rank} in the cell; '
            f'give at least {1 / rank:.3g}'
        )
    return channels


class SearchCell(nn.Module):
    """sum_i softmax(alpha)_i O_i(x) on the first channels; the others bypass the cell.

    Partial channels are as in PC-DARTS (Xu et al. 2020): with rank 3 and ratio 2/3, two channels
    enter and one bypasses. Ratio 1 is the plain cell. The paper does not say which channels enter.
    Here it is the first, as the projections around the cell mix all of them.

    Args:
        rank: Channels r of the map.
        ratio: Share of the channels that enter, in (0, 1].
        preset: Kind of the operations, 'linear' or 'darts'.
        operations: Names of the candidates, a subset of :data:`OPERATIONS`.
        alpha: Architecture parameters, (n,); by default :func:`initial_alpha`. A tensor that is
            not an ``nn.Parameter`` becomes a buffer.

    Raises:
        UserError: If an argument is out of range.
    """

    def __init__(
        self,
        rank: int,
        ratio: float = 1.0,
        preset: str = 'linear',
        operations: Sequence[str] = OPERATIONS,
        alpha: Tensor | None = None,
    ):
        super().__init__()
        one_of(preset, 'preset', PRESETS)
        self.names = some_of(operations, 'operations', OPERATIONS)
        self.rank, self.channels = rank, cell_channels(rank, ratio)
        self.operations = nn.ModuleList(
            build_operation(name, self.channels, preset) for name in self.names
        )
        alpha = initial_alpha(len(self.names)) if alpha is None else alpha
        if isinstance(alpha, nn.Parameter):
            self.alpha = alpha
        else:
            self.register_buffer('alpha', alpha)

    @property
    def probabilities(self) -> Tensor:
        """softmax(alpha), (n,)."""
        return self.alpha.softmax(0)

    @property
    def is_searched(self) -> bool:
        """Whether alpha is trained."""
        return isinstance(self.alpha, nn.Parameter)

    def present(self) -> Iterator[tuple[str, Operation, Tensor]]:
        """Yield name, operation and probability () of the operations with probability above 0."""
        weights = self.probabilities
        # Reading the weights would stall a GPU; a trained softmax has no zeros.
        kept = [True] * len(self.names) if self.is_searched else (weights > 0).tolist()
        for name, operation, weight, is_kept in zip(
            self.names, self.operations, weights, kept, strict=True
        ):
            if is_kept:
                yield name, operation, weight

    def forward(self, x: Tensor) -> Tensor:
        """Mix the operations' outputs.

        Args:
            x: (B, r, H, W).

        Returns:
            (B, r, H, W).
        """
        inside, beside = x.split([self.channels, self.rank - self.channels], dim=1)
        # All linear operations are one convolution: the same sum with a fraction of the calls.
        kernel = self.kernel()
        mixed = F.conv2d(inside, kernel, padding=kernel.shape[-1] // 2)
        for _, operation, weight in self.present():
            if operation.obstacle is not None:
                mixed = mixed + weight * operation(inside)
        return torch.cat([mixed, beside], dim=1)

    def kernel(self) -> Tensor:
        """Mix the operations that are convolutions into one; differentiable.

        Returns:
            (C, C, K, K) for the C channels that enter; K is the largest kernel size.
        """
        kernels = [
            weight * operation.kernel(self.alpha)
            for _, operation, weight in self.present()
            if operation.obstacle is None
        ] or [self.alpha.new_zeros(self.channels, self.channels, 1, 1)]
        size = max(kernel.shape[-1] for kernel in kernels)
        return torch.stack([F.pad(k, [(size - k.shape[-1]) // 2] * 4) for k in kernels]).sum(0)

    def extra_repr(self) -> str:
        """Sizes, for ``print(model)``."""
        return f'rank={self.rank}, channels={self.channels}'
