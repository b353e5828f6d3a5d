"""In which regime does the claim hold? Gains over what is varied, from records alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure

from .tables import markdown, off_diagonal, paired, scores_of, spread

UPPER_BOUND = 'alone_whole'
SHOWN = ('full_finetune', 'single_lora', 'mole', 'free', 'joint')


@dataclass(frozen=True)
class Point:
    """One family of nets under one condition.

    Args:
        condition: Name of the folder its records are in.
        method: How it was trained.
        rate: Learning rate in place of its config's, if there was one.
        iterations: Of stage 2.
        gains: Top-1 over the supernet it started from, by seed and subnet.
        bound: Mean gain of the same subnets by the upper bound; None where it was not trained.
        delta_w: Mean |dW| / |W|.
        gate_shift: L1, None without gates.
        similarity: Tables (n, n), one a seed.
    """

    condition: str
    method: str
    rate: float | None
    iterations: int
    gains: Sequence[float]
    bound: float | None
    delta_w: float
    gate_shift: float | None
    similarity: Sequence


def points_of(records: Sequence[dict], condition: str, part: str = 'heldout') -> list[Point]:
    """The families of stage 2 in the records of one folder."""
    scores, points = scores_of(records, part), []
    bound = paired(scores, UPPER_BOUND, 'autoformer')
    for family in scores:
        own = [r for r in records if r['family'] == family and r['start'] and r[part]]
        if own and own[0]['subnet'] is None and family != 'ten_percent':
            shifts = [r['gate_shift'] for r in own if r['gate_shift'] is not None]
            start = own[0]['start'].rsplit('_seed', 1)[0]
            points.append(
                Point(
                    condition,
                    own[0]['method'],
                    own[0]['rate'],
                    own[0]['iterations'],
                    paired(scores, family, start),
                    mean(bound) if bound and start == 'autoformer' else None,
                    mean(x for r in own for x in r['delta_w']),
                    mean(shifts) if shifts else None,
                    [r[part]['similarity'] for r in own],
                )
            )
    return points


def table(points: Sequence[Point]) -> str:
    """All points, in Markdown."""
    rows = [['condition', 'method', 'rate', 'iterations', 'pairs', 'gain', 'of upper bound, %']]
    rows[0] += ['dW/W', 'gate shift', 'similarity']
    for p in points:
        share = '' if p.bound is None else f'{100 * mean(p.gains) / p.bound:.0f}'
        rows.append(
            [p.condition, p.method, '' if p.rate is None else f'{p.rate:g}', p.iterations]
            + [len(p.gains), spread(p.gains, 2), share, f'{p.delta_w:.3f}']
            + ['' if p.gate_shift is None else f'{p.gate_shift:.4f}', off_diagonal(p.similarity)]
        )
    return markdown(rows)


def draw(points: Sequence[Point], path: Path) -> None:
    """Gains over iterations, over rates, and over how far the weights were moved."""
    figure = Figure(figsize=(12, 3.6), layout='constrained')
    by_length, by_rate, by_change = figure.subplots(1, 3, sharey=True)
    for method in [m for m in SHOWN if any(p.method == m for p in points)]:
        own = [p for p in points if p.method == method]
        colour = f'C{SHOWN.index(method)}'
        lengths = sorted((p.iterations, mean(p.gains)) for p in own if p.condition == 'main')
        rates = sorted((p.rate, mean(p.gains)) for p in own if p.rate is not None)
        for axes, line in ((by_length, lengths), (by_rate, rates)):
            if line:
                axes.plot(*zip(*line, strict=True), 'o-', color=colour)
        by_change.plot(
            [p.delta_w for p in own], [mean(p.gains) for p in own], 'o', color=colour, label=method
        )
    for axes, label in (
        (by_length, 'iterations of stage 2'),
        (by_rate, 'learning rate'),
        (by_change, '|dW| / |W|'),
    ):
        axes.axhline(0, color='grey', lw=0.8)
        axes.set_xscale('log')
        axes.set(xlabel=label)
    by_length.set(ylabel='top-1 over the supernet, points')
    by_change.legend(fontsize=8)
    figure.savefig(path, dpi=150)
