"""Figures of feature similarity, experts, gates and ranking; each function returns a Figure."""

from collections.abc import Mapping, Sequence
from math import isfinite

import numpy as np

from ..report.drawing import BLUE, GREEN, GREY, INK, ORANGE, add_legend, canvas, draw_cells
from .features import spread

COLORS = (BLUE, ORANGE, GREEN, GREY, '#cc79a7', '#e69f00', '#56b4e9')
MEASURE_TITLES = dict(
    a='down projections D',
    b='up projections U',
    product='products UD',
    output='outputs on images',
)


def draw_matrices(panels: Mapping[str, tuple[np.ndarray, Sequence[str]]], label: str):
    """Draw matrices (n, n) side by side on one scale up to 1, with the names of their rows.

    The title of a panel states the mean off the diagonal.
    """
    side = 1.1 + 0.42 * max(len(names) for _, names in panels.values())
    figure, all_axes = canvas(0.9 + side * len(panels), side + 0.5, columns=len(panels))
    low = min(0.0, *(float(np.nanmin(matrix)) for matrix, _ in panels.values()))
    for axes, (title, (matrix, names)) in zip(all_axes, panels.items(), strict=True):
        mean = spread(matrix)['mean']
        image = draw_cells(axes, matrix, names, names, 1.0, '{:.2f}')
        image.set_clim(low, 1.0)
        axes.invert_yaxis()
        axes.set_aspect('equal')
        axes.set_title(f'{title}\nmean {mean:.3f} off the diagonal', fontsize=8)
        if max(map(len, names)) > 3:
            axes.tick_params(axis='x', rotation=90)
    _add_bar(figure, image, all_axes, label)
    return figure


def draw_layers(measures: Mapping[str, Mapping[str, Mapping[str, float]]], label: str):
    """Draw a panel per measure with a line per checkpoint, over layers.

    Args:
        measures: Numbers by measure, checkpoint and layer; NaN leaves a gap.
        label: Label of the numbers' axis.
    """
    layers = list(dict.fromkeys(k for m in measures.values() for line in m.values() for k in line))
    width = max(6.5, 1.6 + 0.17 * len(layers))
    figure, all_axes = canvas(width, 1.1 + 1.7 * len(measures), rows=len(measures), sharex=True)
    for axes, (measure, lines) in zip(all_axes, measures.items(), strict=True):
        for i, (name, line) in enumerate(lines.items()):
            values = [line.get(layer, np.nan) for layer in layers]
            axes.plot(values, 'o-', ms=3, lw=1.2, c=COLORS[i % len(COLORS)], label=name)
        axes.axhline(0, c=GREY, lw=0.6)
        axes.set_title(MEASURE_TITLES.get(measure, measure))
        axes.set_ylabel(label)
    all_axes[-1].set_xticks(range(len(layers)), layers)
    all_axes[-1].tick_params(axis='x', rotation=90, labelsize=6.5)
    add_legend(figure, all_axes[0])
    return figure


def draw_gates(subnets: Mapping[str, Mapping[str, np.ndarray]]):
    """Draw the mixture of experts in each layer, one panel per subnet, on one scale."""
    layers = list(dict.fromkeys(name for gates in subnets.values() for name in gates))
    grids = {name: _grid(gates, layers) for name, gates in subnets.items()}
    experts = max(len(grid) for grid in grids.values())
    height = 0.9 + len(grids) * (0.45 + 0.14 * experts)
    figure, all_axes = canvas(_wide(layers), height, rows=len(grids), sharex=True)
    for axes, (name, grid) in zip(all_axes, grids.items(), strict=True):
        image = _cells(axes, grid, layers, 1.0)
        axes.set_title(name)
    _add_bar(figure, image, all_axes, 'gate')
    return figure


def draw_usage(usage: Mapping[str, Mapping]):
    """Draw how the search space uses the experts of each layer.

    The upper panel has the mean gate of each expert and marks dead ones. The lower panel has the
    mean of the largest gate, and both entropies relative to their maximum, ln K.
    """
    layers = list(usage)
    grid = _grid({name: layer['usage'] for name, layer in usage.items()}, layers)
    height = 3.4 + 0.17 * len(grid)
    ratios = dict(gridspec_kw=dict(height_ratios=[0.17 * len(grid) + 0.3, 1.6]))
    figure, (above, below) = canvas(_wide(layers), height, rows=2, sharex=True, **ratios)
    image = _cells(above, grid, layers, float(np.nanmax(grid)))
    above.set_title('mean gate over the space (x: dead)')
    for column, layer in enumerate(usage.values()):
        dead = layer['dead']
        above.plot(np.full(len(dead), column + 0.5), np.array(dead) + 0.5, 'x', c=ORANGE, ms=4)
    _draw_usage_lines(below, list(usage.values()))
    _add_bar(figure, image, above, 'gate')
    add_legend(figure, below)
    return figure


def draw_ranking(
    scatter: Mapping[str, Sequence[tuple[float, float]]],
    names: Sequence[str],
    tau: Mapping[str, float],
):
    """Draw top-1 by the supernet against top-1 when trained alone; equal on the dashed line.

    Args:
        scatter: (alone, predicted) of each subnet, by checkpoint.
        names: Names of the subnets.
        tau: Kendall's tau by checkpoint, for the legend.
    """
    figure, (axes,) = canvas(5.2, 4.8)
    for i, (name, points) in enumerate(scatter.items()):
        label = f'{name} (tau {tau[name]:.2f})' if isfinite(tau[name]) else f'{name} (no tau)'
        axes.scatter(*zip(*points, strict=True), s=26, c=COLORS[i % len(COLORS)], label=label)
    for place, text in enumerate(names):  # once, at the highest of its points
        point = max((points[place] for points in scatter.values()), key=lambda p: p[1])
        look = dict(fontsize=7, textcoords='offset points', color=INK)
        axes.annotate(text, point, xytext=(4, 3), **look)
    limits = dict(xlim=axes.get_xlim(), ylim=axes.get_ylim())
    axes.axline((0, 0), slope=1, ls='--', c=GREY, lw=1, zorder=0)
    axes.set(**limits)
    axes.set(xlabel='top-1 trained alone, %', ylabel='top-1 by the supernet, %')
    add_legend(figure, axes, columns=1)
    return figure


def draw_scaling(speedups: Mapping[str, Mapping[int, float]]):
    """Draw how many times as fast each kind of search is with more workers.

    Args:
        speedups: Speed-up over one worker, by number of workers, by kind of search.
    """
    figure, (axes,) = canvas(5.2, 4.0)
    for i, (name, points) in enumerate(speedups.items()):
        axes.plot(*zip(*points.items(), strict=True), 'o-', c=COLORS[i % len(COLORS)], label=name)
    workers = sorted({n for points in speedups.values() for n in points})
    axes.plot(workers, workers, ls=':', c=INK, lw=1, zorder=0, label='all workers busy')
    axes.set(xscale='log', yscale='log', xlabel='workers', ylabel='times as fast as one worker')
    axes.set_xticks(workers, workers, minor=False)
    axes.set_yticks(workers, workers, minor=False)
    axes.minorticks_off()
    add_legend(figure, axes, columns=2)
    return figure


def _draw_usage_lines(axes, usage: Sequence[Mapping]) -> None:
    places = np.arange(len(usage)) + 0.5
    highest = np.array([np.log(len(layer['usage'])) or np.nan for layer in usage])
    for label, color, name, scale in (
        ('largest gate', BLUE, 'largest', np.ones(len(usage))),
        ('entropy of a subnet / ln K', ORANGE, 'entropy', highest),
        ('entropy of the usage / ln K', GREEN, 'usage_entropy', highest),
    ):
        values = [layer[name] for layer in usage] / scale
        axes.plot(places, values, 'o-', ms=3, lw=1.2, c=color, label=label)
    axes.set(ylim=(0, 1.03), ylabel='share')
    axes.tick_params(axis='x', rotation=90, labelsize=6.5)


def _add_bar(figure, image, axes, label: str) -> None:
    figure.colorbar(image, ax=axes, label=label, pad=0.02, aspect=30).outline.set_visible(False)


def _cells(axes, grid: np.ndarray, layers: Sequence[str], top: float):
    """Draw experts (rows, first on top) by layers."""
    image = draw_cells(axes, grid, layers, range(len(grid)), top, '')
    axes.invert_yaxis()
    axes.set_ylabel('expert')
    axes.tick_params(axis='x', rotation=90, labelsize=6.5)
    axes.tick_params(axis='y', labelsize=6)
    return image


def _grid(gates: Mapping[str, np.ndarray], layers: Sequence[str]) -> np.ndarray:
    """Stack gates to (K, layers); NaN where a layer or expert is missing."""
    grid = np.full((max(map(len, gates.values())), len(layers)), np.nan)
    for column, layer in enumerate(layers):
        if layer in gates:
            grid[: len(gates[layer]), column] = gates[layer]
    return grid


def _wide(layers: Sequence[str]) -> float:
    return max(6.5, 1.6 + 0.15 * len(layers))
