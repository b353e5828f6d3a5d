"""Figures of the records."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from tas_lora.report.drawing import BLUE, GREEN, GREY, ORANGE, canvas

from .tables import Records, by_way

COLORS = {
    'ordered': GREY,
    'one LoRA': GREEN,
    'experts + shared': BLUE,
    'all weights': ORANGE,
    'all weights + experts': '#cc79a7',
    'all weights, polished': 'black',
}
SEARCHED = 'all weights'
MARKS = dict(scratch='v', distilled='^', isomorphic='s')
NAMES = dict(scratch='from scratch', distilled='distilled', isomorphic='Torch-Pruning')
DIMENSIONS = dict(neurons='MLP', heads='heads', depth='depth', width='width')


def draw_accuracy(ways: Records, others: Records) -> Figure:
    """Test top-1 of every size against its multiply-adds; bars are the range over seeds."""
    figure, (axes,) = canvas(6.4, 4.2)
    steps = max(record['iters'] for record in others)
    for (way, length), group in by_way(ways).items():
        if way in COLORS and length == steps:
            _draw_way(axes, group, way)
    groups = defaultdict(list)
    for record in others:
        groups[record['way'], record['size']].append(record)
    labelled = set()
    for (way, _), group in groups.items():
        if way in MARKS:
            x, y = group[0]['macs'] / 1e6, [record['top1']['test'] for record in group]
            label = None if way in labelled else NAMES[way]
            labelled.add(way)
            bars = dict(yerr=_range(y), fmt=MARKS[way], color='black', mfc='none', capsize=2)
            axes.errorbar(x, np.mean(y), label=label, **bars)
    axes.set(xlabel='multiply-adds of a picture, millions', ylabel='test top-1, %')
    axes.legend(loc='lower right')
    return figure


def _draw_way(axes, group: Records, way: str) -> None:
    """Fixed subnets as a line, found ones as stars."""
    keys = [key for key in group[0]['macs'] if not key.endswith('found')]
    keys.sort(key=group[0]['macs'].get)
    if keys:
        _draw_fixed(axes, group, keys, way)
    found = [
        (record['macs'][key] / 1e6, record['top1']['test'][key])
        for record in group
        for key in record['macs']
        if key.endswith('found')
    ]
    if found:
        axes.plot(*zip(*found, strict=True), '*', color=COLORS[way], ms=8, label=f'{way}, found')


def _draw_fixed(axes, group: Records, keys: Sequence[str], way: str) -> None:
    x = [group[0]['macs'][key] / 1e6 for key in keys]
    y = np.array([[record['top1']['test'][key] for key in keys] for record in group])
    axes.plot(x, y.mean(0), '-', color=COLORS[way], lw=1)
    axes.errorbar(
        x, y.mean(0), yerr=_range(y), fmt='.', color=COLORS[way], label=way, capsize=2, lw=1
    )


def _range(values: Sequence) -> np.ndarray:
    """Distances (2, ...) of the least and the most from the mean over seeds."""
    values = np.asarray(values, float)
    mean = values.mean(0)
    return np.stack([mean - values.min(0), values.max(0) - mean]).reshape(2, -1)


def draw_dimensions(damage: dict) -> Figure:
    """Held-out top-1 when one dimension alone is cut, unordered and ordered."""
    figure, (axes,) = canvas(6.4, 3.6)
    for (name, label), color in zip(DIMENSIONS.items(), (BLUE, GREEN, ORANGE, GREY), strict=True):
        for when, line in (('before', ':'), ('after', '-')):
            points = damage[when][name]
            full = points[0]['macs']
            x = [100 * (1 - point['macs'] / full) for point in points]
            shown = f'{label}, ordered' if when == 'after' else None
            y = [point['top1'] for point in points]
            axes.plot(x, y, line, marker='.', color=color, label=shown)
    axes.set(xlabel='multiply-adds saved, %', ylabel='top-1 of 256 held-out pictures, %')
    axes.set_title('dotted: unordered; nothing is trained')
    axes.legend()
    return figure


def draw_kept(records: Records, order: Sequence[int]) -> Figure:
    """Heads and MLP widths of each block of the original that the found subnets keep."""
    kept = defaultdict(list)
    for record in records:
        for key, subnet in record['subnets'].items():
            if key.endswith('found') and record['way'] == SEARCHED:
                kept[f'{record["way"]}, {key.removesuffix("_found")}'].append(subnet)
    figure, panels = canvas(1.2 + 2.4 * len(kept), 4.6, rows=2, columns=len(kept), sharex=True)
    grid = np.array(panels).reshape(2, -1)
    for column, (title, subnets) in enumerate(kept.items()):
        for row, (name, label, most) in enumerate(
            (('num_heads', 'heads', 6), ('mlp_ratio', 'MLP ratio', 4))
        ):
            axes = grid[row, column]
            _draw_blocks(axes, subnets, order, name)
            axes.set(ylim=(-0.2, most + 0.4), ylabel=label if not column else None)
        grid[0, column].set_title(title)
        grid[1, column].set_xlabel('block of the original')
    return figure


def _draw_blocks(axes, subnets: Sequence[dict], order: Sequence[int], name: str) -> None:
    """One dot per subnet and block; a block that is left out is at 0."""
    for shift, subnet in enumerate(subnets):
        blocks = sorted(order[: len(subnet[name])])  # the best ones, in the original's order
        values = np.zeros(len(order))
        values[blocks] = subnet[name]
        places = np.arange(len(order)) + 0.22 * (shift - (len(subnets) - 1) / 2)
        axes.bar(places, values, 0.2, color=(BLUE, ORANGE, GREEN)[shift % 3])
