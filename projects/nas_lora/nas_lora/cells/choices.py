"""Operations that the layers chose: a table and a figure of their probabilities."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from tas_lora.errors import UserError, blame

from .cell import SearchCell
from .fold import nas_lora_layers
from .operations import OPERATIONS


@torch.no_grad()
def choices(model: nn.Module) -> dict[str, dict[str, float]]:
    """softmax(alpha) of every cell.

    Args:
        model: A model with :class:`NASLoRALinear` layers.

    Returns:
        For each ``layer.part``, in the model's order: the operations' probabilities by name.

    Raises:
        UserError: If there are no such layers, or a cell is folded.
    """
    return {
        f'{name}.{part}': _probabilities(branch.cell, f'{name}.{part}')
        for name, layer in nas_lora_layers(model).items()
        for part, branch in layer.branches.items()
    }


def _probabilities(cell: nn.Module, where: str) -> dict[str, float]:
    if not isinstance(cell, SearchCell):
        raise UserError(f'{where} is folded and has no operations; read the choices before')
    return dict(zip(cell.names, cell.probabilities.tolist(), strict=True))


def choices_table(model: nn.Module) -> str:
    """:func:`choices` as a Markdown table: a row per cell, with the most likely operation last.

    Raises:
        UserError: As :func:`choices`.
    """
    return probabilities_table(choices(model))


def probabilities_table(found: dict[str, dict[str, float]]) -> str:
    """:func:`choices_table` of a result of :func:`choices`, or of a mean of several."""
    names = _operations_of(found)
    rows = [['layer', *names, 'chosen'], ['---', *['---:'] * len(names), '---']]
    for layer, chances in found.items():
        numbers = [f'{chances[name]:.3f}' if name in chances else '' for name in names]
        rows.append([layer, *numbers, max(chances, key=chances.get)])
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


def draw_choices(model: nn.Module, path: str | Path) -> None:
    """Draw the table as a figure, in the format of the file's extension.

    Args:
        model: As in :func:`choices`.
        path: File to write, such as ``choices.png``.

    Raises:
        UserError: As :func:`choices`; also if the file cannot be written.
    """
    draw_probabilities(choices(model), path)


def draw_probabilities(found: dict[str, dict[str, float]], path: str | Path) -> None:
    """:func:`draw_choices` of a result of :func:`choices`, or of a mean of several."""
    from matplotlib.figure import Figure

    names = _operations_of(found)
    chances = np.array([[row.get(name, np.nan) for name in names] for row in found.values()])
    figure = Figure(figsize=(2.5 + 0.7 * len(names), 1.5 + 0.18 * len(found)), layout='constrained')
    axes = figure.subplots()
    # The scale starts at 0, or the initial architecture parameters would look like a choice.
    look = dict(aspect='auto', cmap='cividis', interpolation='nearest', vmin=0)
    image = axes.imshow(chances, **look)
    axes.set_xticks(range(len(names)), names, rotation=45, ha='right', fontsize=8)
    axes.set_yticks(range(len(found)), list(found), fontsize=6)
    best = np.nanargmax(chances, axis=1)  # the most likely one of each cell
    axes.plot(best, range(len(found)), '.', color='#d55e00', markersize=5)
    figure.colorbar(image, label='probability')
    with blame(f'{path} cannot be written'):
        figure.savefig(path, dpi=150)


def _operations_of(found: dict[str, dict[str, float]]) -> list[str]:
    """Names of operations that any cell has, in the usual order."""
    return [name for name in OPERATIONS if any(name in row for row in found.values())]
