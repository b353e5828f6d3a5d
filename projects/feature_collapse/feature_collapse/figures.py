"""Figures of the records."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .tables import (
    Values,
    bound_of,
    gains_of,
    scores_of,
    seed_means,
    similarities_of,
    stretch_of,
    supernet_of,
)

TITLES = dict(autoformer="AutoFormer's supernet", dynas="DYNAS's supernet")
HEAT_MAPS = ('autoformer', 'dynas', 'mole', 'independent_same')  # as in the paper's figure 1


def draw_similarity(tables: dict[str, list], path: Path) -> None:
    """Heat maps of the similarity of subnets, mean over seeds, one a method."""
    shown = [family for family in HEAT_MAPS if family in tables] or list(tables)
    figure = Figure(figsize=(3.2 * len(shown), 3.4), layout='constrained')
    for axes, family in zip(np.ravel(figure.subplots(1, len(shown))), shown, strict=True):
        table = np.mean(tables[family], axis=0)
        image = axes.imshow(table, vmin=0, vmax=1, cmap='viridis')
        for (i, j), value in np.ndenumerate(table):
            colour = 'black' if value > 0.6 else 'white'
            axes.text(j, i, f'{value:.2f}', ha='center', va='center', color=colour, fontsize=7)
        axes.set(title=family, xlabel='subnet', ylabel='subnet')
    figure.colorbar(image, ax=figure.axes, label='cosine similarity')
    figure.savefig(path, dpi=150)


def draw_gains(records: Sequence[dict], part: str, path: Path) -> Figure:
    """Gains over the supernet, mean of the subnets: each seed a dot, their mean a line.

    Two panels a supernet: trainings as long as their configs say, and others. Dashed, the
    supernet's upper bound.
    """
    scores, panels = scores_of(records, part), defaultdict(dict)
    for family in scores:
        supernet = supernet_of(family)
        gains = gains_of(scores, family, supernet)
        if gains and supernet != family:
            panels[supernet, bool(stretch_of(family))][family] = seed_means(gains)
    most = max((len(panel) for panel in panels.values()), default=1)
    figure = Figure(figsize=(4.6 * max(1, len(panels)), 0.22 * most + 1.2), layout='constrained')
    for place, ((supernet, is_stretched), panel) in enumerate(sorted(panels.items()), 1):
        axes = figure.add_subplot(1, len(panels), place)
        _gains_panel(axes, panel, gains_of(scores, bound_of(scores, supernet), supernet))
        axes.set_ylim(len(panel) - most - 0.7, len(panel) - 0.3)  # rows as high in all panels
        axes.set(title=TITLES[supernet] + ', other lengths' * is_stretched)
    figure.savefig(path, dpi=150)
    return figure


def _gains_panel(axes: Axes, panel: dict[str, list[float]], bound: Values) -> None:
    """One row a family, the largest gain on top."""
    families = sorted(panel, key=lambda family: np.mean(panel[family]))
    for row, family in enumerate(families):
        axes.plot(panel[family], [row] * len(panel[family]), 'o', color='tab:blue', alpha=0.5, ms=4)
        axes.plot([np.mean(panel[family])] * 2, [row - 0.35, row + 0.35], color='black')
    if bound:
        axes.axvline(np.mean([*bound.values()]), color='tab:red', linestyle='--', linewidth=1)
    axes.axvline(0, color='grey', linewidth=0.8)
    axes.set_yticks(range(len(families)), families, fontsize=8)
    axes.grid(axis='x', alpha=0.3)
    axes.set(xlabel='gain over the supernet, points')


def draw_curves(records: Sequence[dict], path: Path) -> None:
    """|dW|/|W| of the largest subnet and the shift of gates over training, a line a net."""
    moving = [r for r in records if r['part'] == 'stage2' and r['curves']]
    names = dict(delta_w='|dW| / |W|, largest subnet', gate_shift='gate shift, L1')
    families = sorted({record['family'] for record in moving})
    figure = Figure(figsize=(9, 3.4), layout='constrained')
    for axes, (curve, label) in zip(figure.subplots(1, 2), names.items(), strict=True):
        for record in moving:
            values = record['curves'][curve]
            iterations = np.linspace(0, record['iterations'], len(values))
            colour = f'C{families.index(record["family"])}'
            is_first = record['seed'] == min(r['seed'] for r in moving)
            axes.plot(
                iterations, values, color=colour, label=record['family'] if is_first else None
            )
        axes.set(xlabel='iteration of stage 2', ylabel=label)
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=150)


def draw_all(
    records: Sequence[dict], families: Sequence[dict], part: str, folder: Path
) -> list[Path]:
    """All figures that the records are enough for; returns their files."""
    drawn, tables = [folder / f'gains_{part}.png'], similarities_of(records, families, part)
    draw_gains(records, part, drawn[0])
    if tables:
        drawn.append(folder / f'similarity_{part}.png')
        draw_similarity(tables, drawn[-1])
    if any(record['part'] == 'stage2' and record['curves'] for record in records):
        drawn.append(folder / 'curves.png')
        draw_curves(records, drawn[-1])
    return drawn
