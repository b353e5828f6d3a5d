"""Figures of the records."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from .tables import scores_of, seed_means, similarities_of

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


def draw_top1(records: Sequence[dict], part: str, path: Path) -> None:
    """Mean top-1 of the subnets by method: each seed a dot, their mean a line."""
    scores = scores_of(records, part)
    figure = Figure(figsize=(7, 0.35 * len(scores) + 1.2), layout='constrained')
    axes = figure.subplots()
    for row, values in enumerate(scores.values()):
        means = seed_means(values)
        axes.plot(means, [row] * len(means), 'o', color='tab:blue', alpha=0.6)
        axes.plot([np.mean(means)] * 2, [row - 0.35, row + 0.35], color='black')
    axes.set_yticks(range(len(scores)), scores)
    axes.invert_yaxis()
    axes.grid(axis='x', alpha=0.3)
    axes.set(xlabel=f'top-1 on the {part} images, %, mean of the subnets')
    figure.savefig(path, dpi=150)


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
    drawn, tables = [folder / f'top1_{part}.png'], similarities_of(records, families, part)
    draw_top1(records, part, drawn[0])
    if tables:
        drawn.append(folder / f'similarity_{part}.png')
        draw_similarity(tables, drawn[-1])
    if any(record['part'] == 'stage2' and record['curves'] for record in records):
        drawn.append(folder / 'curves.png')
        draw_curves(records, drawn[-1])
    return drawn
