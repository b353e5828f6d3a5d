"""The cells of a layer in few calls: one kernel, one grouped convolution, one max pooling.

A cell is sum_i w_i O_i with w = softmax(alpha). All O_i of the linear preset but max pooling are a
depthwise convolution D_i and then a pointwise one P_i, so that their sum is one convolution with

    kernel[o, c, t] = sum_i w_i P_i[o, c] D_i[c, t].

Parts of a layer are groups of it. :meth:`.cell.SearchCell.forward` is the definition that this
equals.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cell import SearchCell, padded
from .operations import MaxPool

MAXIMUM = 'max_pool_3x3'


@dataclass(frozen=True)
class Mixture:
    """P cells as a convolution and a max pooling, on the P C channels that enter them.

    Attributes:
        kernel: (P C, C, K, K), a group for each cell.
        maximum: Weights of max pooling, (P C, 1, 1); None if no cell has it.
    """

    kernel: Tensor
    maximum: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """Mix maps (B, P C, H, W), all cells at once."""
        kernel, is_token = self.kernel, x.shape[-2:] == (1, 1)
        if is_token:  # all that surrounds it is padding
            middle = kernel.shape[-1] // 2
            kernel = kernel[:, :, middle : middle + 1, middle : middle + 1]
        groups = kernel.shape[0] // kernel.shape[1]
        mixed = F.conv2d(x, kernel, padding=kernel.shape[-1] // 2, groups=groups)
        if self.maximum is None:
            return mixed
        largest = x if is_token else F.max_pool2d(x, 3, stride=1, padding=1)
        return torch.addcmul(mixed, largest, self.maximum)


def mixing(cells: Sequence[nn.Module], rank: int) -> Callable[[Tensor], Tensor]:
    """A function that sends each map through its cell.

    It may be called on several maps; kernels are made once.

    Args:
        cells: P cells of the same rank r and ratio, or folded.
        rank: r.

    Returns:
        A function (B, H, W, P r) -> (B, H, W, P r).
    """
    if not is_batchable(cells):
        return lambda x: _one_by_one(cells, x)
    mixed = mixture(cells)
    channels = mixed.kernel.shape[1]
    if channels == rank:
        return lambda x: mixed(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def mix(x: Tensor) -> Tensor:
        inside, beside = x.unflatten(-1, (-1, rank)).tensor_split([channels], dim=-1)
        y = mixed(inside.flatten(-2).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return torch.cat([y.view(inside.shape), beside], dim=-1).flatten(-2)

    return mix


def _one_by_one(cells: Sequence[nn.Module], x: Tensor) -> Tensor:
    maps = x.permute(0, 3, 1, 2).chunk(len(cells), dim=1)
    return torch.cat([cell(m) for cell, m in zip(cells, maps, strict=True)], 1).permute(0, 2, 3, 1)


def is_batchable(cells: Sequence[nn.Module]) -> bool:
    """Whether all cells are folded, or convolutions and max pooling only."""
    return all(isinstance(cell, nn.Conv2d) or _is_linear(cell) for cell in cells)


def mixture(cells: Sequence[nn.Module]) -> Mixture:
    """Mix the operations of each cell into one convolution, apart from max pooling.

    Args:
        cells: Cells with the same channels, see :func:`is_batchable`.
    """
    names = getattr(cells[0], 'names', None)
    if all(getattr(cell, 'names', ()) == names and cell.is_complete for cell in cells):
        return _of_complete(cells)
    kernels = [cell.kernel() if isinstance(cell, SearchCell) else cell.weight for cell in cells]
    size = max(kernel.shape[-1] for kernel in kernels)
    kernel = torch.cat([padded(each, size) for each in kernels])
    weights = [_weight_of_maximum(cell) for cell in cells]
    if all(weight is None for weight in weights):
        return Mixture(kernel, None)
    weights = torch.stack([kernel.new_zeros(()) if w is None else w for w in weights])
    return Mixture(kernel, _of_channels(weights, kernel))


def _of_complete(cells: Sequence[SearchCell]) -> Mixture:
    """Of cells in which the same operations are present, in a few calls whatever their number."""
    first, P, C = cells[0], len(cells), cells[0].channels
    weights = torch.stack([cell.alpha for cell in cells]).softmax(1)  # (P, n)
    factors = [operation.factors() for cell in cells for operation in cell.convolutions()]
    depthwise = torch.cat([each.flatten(1) for each, _ in factors], dim=1).view(C, P, -1)
    pointwise = torch.cat([each.flatten(1) for _, each in factors], dim=1).view(C, P, -1, C)
    taps = (depthwise @ first.places).view(C, P, pointwise.shape[2], -1)
    chosen = weights.index_select(1, first.is_convolution)[..., None]
    kernel = torch.einsum('oplc,cplt->poct', pointwise * chosen, taps)
    size = math.isqrt(kernel.shape[-1])
    kernel = kernel.reshape(P * C, C, size, size)
    if MAXIMUM not in first.names:
        return Mixture(kernel, None)
    return Mixture(kernel, _of_channels(weights[:, first.names.index(MAXIMUM)], kernel))


def _of_channels(weights: Tensor, kernel: Tensor) -> Tensor:
    """Weights of P cells, (P,), for each of their channels, (P C, 1, 1)."""
    channels = kernel.shape[1]
    return weights[:, None].expand(-1, channels).reshape(-1, 1, 1)


def _weight_of_maximum(cell: nn.Module) -> Tensor | None:
    if not isinstance(cell, SearchCell):
        return None
    return next((weight for name, _, weight in cell.present() if name == MAXIMUM), None)


def _is_linear(cell: nn.Module) -> bool:
    return isinstance(cell, SearchCell) and all(
        operation.obstacle is None or isinstance(operation, MaxPool)
        for operation in cell.operations
    )
