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
        # Not in checkpoints, as they follow from the operations.
        numbers = [i for i, op in enumerate(self.operations) if op.obstacle is None]
        self.register_buffer('is_convolution', torch.tensor(numbers), persistent=False)
        self.register_buffer('places', tap_places(self.convolutions()), persistent=False)

    @property
    def probabilities(self) -> Tensor:
        """softmax(alpha), (n,)."""
        return self.alpha.softmax(0)

    @property
    def is_searched(self) -> bool:
        """Whether alpha is trained."""
        return isinstance(self.alpha, nn.Parameter)

    @property
    def is_complete(self) -> bool:
        """Whether all operations are present, some of them convolutions."""
        are_all = self.is_searched or bool((self.probabilities > 0).all())
        return are_all and len(self.convolutions()) > 0

    def convolutions(self) -> list[Operation]:
        """The operations that are convolutions."""
        return [operation for operation in self.operations if operation.obstacle is None]

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
        """Mix the operations' outputs, one by one: the definition.

        Layers compute the same for all their cells at once, by :mod:`nas_lora.cells.batched`.

        Args:
            x: (B, r, H, W).

        Returns:
            (B, r, H, W).
        """
        inside, beside = x.split([self.channels, self.rank - self.channels], dim=1)
        mixed = sum(weight * operation(inside) for _, operation, weight in self.present())
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
        return torch.stack([padded(kernel, size) for kernel in kernels]).sum(0)

    def extra_repr(self) -> str:
        """Sizes, for ``print(model)``."""
        return f'rank={self.rank}, channels={self.channels}'


def padded(kernel: Tensor, size: int) -> Tensor:
    """A kernel (..., K, K) with zeros around it, (..., size, size)."""
    return F.pad(kernel, [(size - kernel.shape[-1]) // 2] * 4)


def tap_places(convolutions: Sequence[Operation]) -> Tensor:
    """Where the taps of depthwise kernels lie in a kernel of the largest size K.

    Args:
        convolutions: L operations without ``obstacle``.

    Returns:
        (T, L K^2) of 0 and 1; ``taps @ places`` are L kernels of K x K for their T taps together.
    """
    sizes = [(op.factors()[0].shape[-1], op.dilation) for op in convolutions]
    largest = max((dilation * (size - 1) + 1 for size, dilation in sizes), default=1)
    blocks = []
    for size, dilation in sizes:
        along = largest // 2 + dilation * (torch.arange(size) - size // 2)
        places = (along[:, None] * largest + along).flatten()
        blocks.append(F.one_hot(places, largest**2).float())
    return torch.block_diag(*blocks)
