"""In which regime does the claim hold? Gains over what is varied, from records alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .plan import METHODS
from .settings import load
from .tables import (
    Scores,
    gains_of,
    markdown,
    method_of,
    off_diagonal,
    off_diagonals,
    scores_of,
    share_of_bound,
    spread,
    start_of,
    supernet_of,
)

SHOWN = ('full_finetune', 'single_lora', 'mole', 'plus', 'joint', 'alone_whole')
SHOWN += ('independent_same',)  # this and those below from scratch: over stage 1 alone
SHOWN += ('joint_start', 'longer', 'longer_single')


@dataclass(frozen=True)
class Point:
    """One family of nets under one condition.

    Args:
        condition: Name of the folder its records are in.
        method: How it was trained.
        experts: K; 0 without experts, None where the space is not known.
        stretch: Length of stage 2 over that of its config.
        rate: Learning rate in place of its config's, if there was one.
        first: Iterations of stage 1; from scratch, of all training.
        iterations: Of stage 2; None from scratch.
        gains: Top-1 over the supernet it started from, AutoFormer's from scratch, by seed and
            subnet.
        share: Of what the upper bound gains over that supernet, percent; empty where there is none.
        delta_w: Mean |dW| / |W|; None from scratch.
        gate_shift: L1, None without gates that could move.
        similarity: Tables (n, n), one a seed; none of subnets trained alone.
    """

    condition: str
    method: str
    experts: int | None
    stretch: float
    rate: float | None
    first: int
    iterations: int | None
    gains: Sequence[float]
    share: str
    delta_w: float | None
    gate_shift: float | None
    similarity: Sequence


def points_of(
    records: Sequence[dict], condition: str, space: str | None = 'nano', part: str = 'heldout'
) -> list[Point]:
    """The families in the records of one folder, other than supernets, of which all is there."""
    scores, points = scores_of(records, part), []
    for family in scores:
        supernet = supernet_of(family)
        firsts = {r['seed']: r['iterations'] for r in records if r['family'] == supernet}
        own = [r for r in records if r['family'] == family and r[part] and r['seed'] in firsts]
        if own and METHODS[method_of(family)].part != 'supernet':
            first = firsts[own[0]['seed']] if start_of(family) else own[0]['iterations']
            points.append(_point(own, condition, space, part, scores, first))
    return points


def _point(
    own: Sequence[dict], condition: str, space: str | None, part: str, scores: Scores, first: int
) -> Point:
    """What the records of one family say together."""
    family, method = own[0]['family'], own[0]['method']
    shifts = [r['gate_shift'] for r in own if r['gate_shift']]
    changes = [x for r in own for x in r['delta_w'] or ()]
    return Point(
        condition,
        method,
        space and experts_of(method, space),
        own[0]['stretch'],
        own[0]['rate'],
        first,
        own[0]['iterations'] if start_of(family) else None,
        list(gains_of(scores, family, supernet_of(family)).values()),
        share_of_bound(scores, family),
        mean(changes) if changes else None,
        mean(shifts) if shifts else None,
        [r[part]['similarity'] for r in own if r[part]['similarity']],
    )


def experts_of(method: str, space: str) -> int:
    """K of a method, 0 if it has no experts."""
    return (
        load(METHODS[method].config, '', space=space)
        .model.backbone.get('mole', {})
        .get('num_experts', 0)
    )


def table(points: Sequence[Point]) -> str:
    """All points, in Markdown."""
    rows = [['condition', 'stage 1', 'method', 'K', 'rate', 'stage 2', 'visits of an expert']]
    rows[0] += ['pairs', 'gain', 'of upper bound, %', 'dW/W', 'gate shift', 'similarity']
    for p in points:
        visits = p.iterations // p.experts if p.experts and p.iterations else ''
        rows.append(
            [p.condition, p.first, p.method, p.experts or '']
            + [_formatted(p.rate, 'g'), p.iterations or '', visits]
            + [len(p.gains), spread(p.gains, 2), p.share, _formatted(p.delta_w, '.3f')]
            + [_formatted(p.gate_shift, '.4f'), off_diagonal(p.similarity)]
        )
    return markdown(rows)


def _formatted(value: float | None, form: str) -> str:
    return '' if value is None else format(value, form)


def draw(points: Sequence[Point], path: Path) -> Figure:
    """Gains over lengths and rate; change of weights, gates and similarity over stage 2."""
    figure = Figure(figsize=(12, 7), layout='constrained')
    axes = figure.subplots(2, 3)
    main = [p for p in points if p.condition == 'main' and p.rate is None]
    stages = [p for p in points if p.condition.startswith('first_')] + main
    stages = [p for p in stages if p.stretch == 1 and p.rate is None]
    main = [p for p in main if p.iterations]  # after stage 1: nets from scratch have no stage 2
    rates = [p for p in points if p.rate is not None and p.condition == 'tuning']
    _lines(axes[0, 0], main, 'iterations of stage 2', _iterations, 'gain, points', _gain)
    _lines(axes[0, 1], stages, 'iterations of stage 1', lambda p: p.first, 'gain, points', _gain)
    _lines(axes[0, 2], rates, 'learning rate', lambda p: p.rate, 'gain, points', _gain)
    _lines(axes[1, 0], main, 'iterations of stage 2', _iterations, '|dW| / |W|', _change)
    _lines(axes[1, 1], main, 'iterations of stage 2', _iterations, 'gate shift, L1', _shift)
    _lines(axes[1, 2], main, 'iterations of stage 2', _iterations, 'similarity', _alikeness)
    figure.legend(*axes[0, 1].get_legend_handles_labels(), loc='outside lower center', ncols=5)
    figure.savefig(path, dpi=150)
    return figure


def _iterations(point: Point) -> int | None:
    return point.iterations


def _gain(point: Point) -> float:
    return mean(point.gains)


def _change(point: Point) -> float | None:
    return point.delta_w


def _shift(point: Point) -> float | None:
    return point.gate_shift


def _alikeness(point: Point) -> float | None:
    return mean(off_diagonals(point.similarity)) if point.similarity else None


def _lines(
    axes: Axes, points: Sequence[Point], x_label: str, x: Callable, y_label: str, y: Callable
) -> None:
    """A line for each method that has ``y``."""
    for place, method in enumerate(SHOWN):
        own = [p for p in points if p.method == method and y(p) is not None]
        line = sorted((x(p), y(p)) for p in own)
        axes.plot([a for a, _ in line], [b for _, b in line], 'o-', color=f'C{place}', label=method)
    ticks = sorted({x(p) for p in points if p.method in SHOWN and y(p) is not None})
    axes.set_xscale('log')
    axes.set_xticks(ticks, [f'{tick:g}' for tick in ticks], rotation=30)
    axes.minorticks_off()
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3)
