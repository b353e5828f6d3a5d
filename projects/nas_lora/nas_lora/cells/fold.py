"""Fold a trained cell into one small convolution: the same function, exactly.

If its operations are linear, the cell is one kernel (r, r, K, K) with zero padding; channels that
bypass it are the identity. The convolution stays next to the frozen layer: folding makes the cell
cheap, not free.
"""

import torch
from torch import Tensor, nn

from tas_lora.errors import UserError

from .cell import SearchCell
from .linear import NASLoRALinear


class FoldedCell(nn.Conv2d):
    """A cell as a convolution (r, r, K, K) without bias, with zero padding.

    Args:
        kernel: (r, r, K, K), K odd.
        spatial: Names of the folded operations in which a token sees its neighbours.
    """

    def __init__(self, kernel: Tensor, spatial: tuple[str, ...] = ()):
        rank, _, _, size = kernel.shape
        super().__init__(rank, rank, size, padding=size // 2, bias=False)
        self.to(kernel).weight.data.copy_(kernel)
        self.spatial = spatial


@torch.no_grad()
def cell_kernel(cell: SearchCell) -> Tensor:
    """The convolution kernel that equals a cell.

    Args:
        cell: A cell with linear operations only; those of probability 0 do not matter.

    Returns:
        (r, r, K, K); K is the largest kernel size of its operations (linear preset: 9).

    Raises:
        UserError: If an operation is not a convolution; it names the operation and the reason.
    """
    for name, operation, _ in cell.present():
        if operation.obstacle is not None:
            raise UserError(
                f'fold: {name} is in the way, as {operation.obstacle}; train with '
                f'operations that do not have it, or use merge_least_squares'
            )
    kernel = cell.kernel()
    size = kernel.shape[-1]
    folded = kernel.new_zeros(cell.rank, cell.rank, size, size)
    folded[: cell.channels, : cell.channels] = kernel
    for channel in range(cell.channels, cell.rank):
        folded[channel, channel, size // 2, size // 2] = 1
    return folded


def fold_cell(cell: SearchCell | FoldedCell) -> FoldedCell:
    """The cell as one convolution; a folded cell is returned unchanged.

    Raises:
        UserError: As :func:`cell_kernel`.
    """
    if isinstance(cell, FoldedCell):
        return cell
    return FoldedCell(cell_kernel(cell), spatial_operations(cell))


def spatial_operations(cell: SearchCell | FoldedCell) -> tuple[str, ...]:
    """Names of a cell's operations that mix tokens and have a probability above 0."""
    if isinstance(cell, FoldedCell):
        return cell.spatial
    return tuple(name for name, operation, _ in cell.present() if operation.is_spatial)


def nas_lora_layers(model: nn.Module) -> dict[str, NASLoRALinear]:
    """The adapted layers of ``model`` by name.

    Raises:
        UserError: If there are none.
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, NASLoRALinear)}
    if not layers:
        raise UserError(
            f'the {type(model).__name__} has no NASLoRALinear; adapt it first, or it is merged'
        )
    return layers


def fold(model: nn.Module) -> list[str]:
    """Fold the cells of all layers of ``model`` in place: same outputs, lower cost.

    This removes the architecture parameters; a folded cell is trained as a convolution.

    Args:
        model: An encoder with :class:`NASLoRALinear`, or a model that holds one.

    Returns:
        The folded cells as ``layer.part``.

    Raises:
        UserError: As :func:`cell_kernel`, with the layer's name; nothing is folded then.
    """
    branches = {
        f'{name}.{part}': branch
        for name, layer in nas_lora_layers(model).items()
        for part, branch in layer.branches.items()
    }
    folded = {}
    for name, branch in branches.items():
        try:
            folded[name] = fold_cell(branch.cell)
        except UserError as error:
            raise UserError(f'{name}: {error}') from error
    for name, branch in branches.items():
        branch.cell = folded[name]
    return list(folded)
