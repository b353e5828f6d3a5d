"""Figures of a search: progress, costs, choices. Each function returns a Figure."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate
from math import inf, isfinite, nan

import numpy as np

from ..search import pareto_front
from .drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    add_legend,
    canvas,
    draw_cells,
    draw_cloud,
    focus,
    numbers_of,
    shade_limits,
)
from .results import Candidate, SearchResults

TOP = 10  # number of best candidates to show
LABELS = dict(
    params='parameters',
    flops='FLOPs (multiply-accumulates)',
    latency='latency, ms',
    memory='peak memory, MiB',
)


def draw_progress(results: SearchResults):
    """Draw the scores in the order of evaluation, and the best so far.

    The n-th candidate of the random search is at the place of the search's n-th.
    """
    figure, (axes,) = canvas(9, 3.6)
    search, baseline = results.of('search'), results.of('baseline')
    generations = 1 + max((c.generation for c in search), default=0)
    a_candidate = generations / max(len(search), 1)
    phases = ('random', GREY, 1.5, baseline), ('search', BLUE, 2.0, search)
    for name, color, width, candidates in phases:
        places = np.arange(1, len(candidates) + 1) * a_candidate
        draw_cloud(axes, places, candidates, color, name)
        best = best_so_far(results, candidates)
        if any(map(isfinite, best)):
            look = dict(c=color, lw=width, label=f'{name}, best so far')
            axes.step(places, best, where='post', **look)
    axes.set(xlabel='generations done', ylabel=results.score, xlim=(0, generations * 1.01))
    axes.xaxis.get_major_locator().set_params(integer=True)
    focus(axes, results)
    add_legend(figure, axes)
    return figure


def draw_score_against(results: SearchResults, cost: str):
    """Draw score against one cost: candidates, front, parents, knees, random search and limits."""
    from matplotlib.ticker import EngFormatter

    figure, (axes,) = canvas(4.8, 4.4)
    for name, color, phase in (('random', GREY, 'baseline'), ('search', BLUE, 'search')):
        candidates = results.of(phase)
        draw_cloud(axes, numbers_of(candidates, cost), candidates, color, name)
    front = front_of(results, cost)
    points = numbers_of(front, cost), [c.score for c in front]
    axes.step(*points, c=INK, lw=1, where='post', label='front')
    for label, candidates, look in _marks(results):
        if candidates:
            points = numbers_of(candidates, cost), [c.score for c in candidates]
            axes.scatter(*points, label=label, zorder=4, **look)
    axes.set(xlabel=LABELS.get(cost, cost), ylabel=results.score)
    if cost not in ('latency', 'memory'):  # their units have a prefix already
        axes.xaxis.set_major_formatter(EngFormatter(sep='\N{NARROW NO-BREAK SPACE}'))
    axes.locator_params(axis='x', nbins=5)
    focus(axes, results)
    if cost in results.limits:
        shade_limits(axes, *results.limits[cost])
    add_legend(figure, axes, columns=3)
    return figure


def draw_choices(results: SearchResults):
    """Draw the share of each width, depth, head count, MLP ratio and patch: best against all."""
    space = results.space
    panels = [
        ('width', space.embed_dim, lambda s: [s.embed_dim]),
        ('depth', space.depth, lambda s: [s.depth]),
        ('heads of a block', space.num_heads, lambda s: s.num_heads),
        ('MLP ratio of a block', space.mlp_ratio, lambda s: s.mlp_ratio),
    ]
    if space.patch_size is not None:
        panels.append(('patch size', space.patch_size, lambda s: [s.patch_size]))
    figure, all_axes = canvas(9, 2.5, columns=len(panels), sharey=True)
    best, all_of_them = results.ranking[:TOP], results.of('search')
    groups = (f'best {len(best)}', best, BLUE, -0.2), ('all candidates', all_of_them, GREY, 0.2)
    for axes, (title, choices, genes) in zip(all_axes, panels, strict=True):
        places = np.arange(len(choices))
        for label, candidates, color, shift in groups:
            heights = shares((g for c in candidates for g in genes(c.subnet)), choices)
            axes.bar(places + shift, heights, 0.36, color=color, label=label)
        axes.set(title=title, ylim=(0, 1))
        axes.set_xticks(places, [f'{choice:g}' for choice in choices])
        axes.yaxis.set_major_formatter('{x:.0%}')
    all_axes[0].set_ylabel('share')
    add_legend(figure, all_axes[0])
    return figure


def draw_positions(results: SearchResults):
    """Draw the heads and MLP ratios of the best by block; frame those of the winner."""
    from matplotlib.patches import Rectangle

    space, winner = results.space, results.winner.subnet
    best = [c.subnet for c in results.ranking[:TOP]]
    heads = space.num_heads, [s.num_heads for s in best], winner.num_heads
    ratios = space.mlp_ratio, [s.mlp_ratio for s in best], winner.mlp_ratio
    depth = max(subnet.depth for subnet in [*best, winner])
    height = 1.2 + 0.3 * (len(heads[0]) + len(ratios[0]))
    figure, all_axes = canvas(min(9, 1.4 + 0.65 * depth), height, rows=2, sharex=True)
    for axes, label, row in zip(all_axes, ('heads', 'MLP ratio'), (heads, ratios), strict=True):
        choices, genes, chosen = row
        columns = [[blocks[i] for blocks in genes if i < len(blocks)] for i in range(depth)]
        grid = np.array([shares(column, choices) for column in columns]).T
        names = [f'{choice:g}' for choice in choices]
        draw_cells(axes, grid, range(1, depth + 1), names, 1.0, '{:.0%}')
        axes.set_ylabel(label)
        for column, choice in enumerate(chosen):
            corner = column + 0.04, choices.index(choice) + 0.05
            axes.add_patch(Rectangle(corner, 0.92, 0.9, fill=False, ec=ORANGE, lw=1.6, zorder=3))
    all_axes[-1].set_xlabel('block')
    return figure


def draw_gates(results: SearchResults):
    """Draw the winner's mixture of experts in each layer; the first expert is on top."""
    layers = list(results.gates)
    grid = np.array([results.gates[layer] for layer in layers], float).T  # (K, layers)
    experts = len(grid)
    figure, (axes,) = canvas(max(9, 1 + 0.15 * len(layers)), 1.6 + 0.19 * experts)
    image = draw_cells(axes, grid, layers, range(1, experts + 1), grid.max() or 1.0, '')
    axes.invert_yaxis()
    axes.set_ylabel('expert')
    axes.tick_params(axis='x', rotation=90, labelsize=6.5)
    axes.tick_params(axis='y', labelsize=7)
    bar = figure.colorbar(image, ax=axes, label='gate', pad=0.01, aspect=30)
    bar.outline.set_visible(False)
    bar.solids.set_rasterized(False)  # vectors take the page's colours
    return figure


def shares(genes: Iterable, choices: Sequence) -> list[float]:
    """Return the share of each choice in ``genes``, from 0 to 1; all 0 without genes."""
    counts = Counter(genes)
    total = sum(counts.values()) or 1
    return [counts[choice] / total for choice in choices]


def front_of(results: SearchResults, cost: str) -> list[Candidate]:
    """Return the candidates that are better than all that cost no more, cheapest first."""
    known = [c for c in results.ranking if isfinite(c.numbers.get(cost, nan))]
    losses = [results.gain(0.0, c.score) for c in known]  # lower is better
    mask = pareto_front(np.column_stack([numbers_of(known, cost), losses]))
    front = [c for c, is_best in zip(known, mask, strict=True) if is_best]
    return sorted(front, key=lambda c: c.numbers[cost])


def best_so_far(results: SearchResults, candidates: Iterable[Candidate]) -> list[float]:
    """Return the best complete score after each candidate; NaN before the first."""
    better, worst = (min, inf) if results.rule == 'less' else (max, -inf)
    known = [c.score if c.is_complete and isfinite(c.score) else worst for c in candidates]
    return [best if isfinite(best) else nan for best in accumulate(known, better)]


def _marks(results: SearchResults) -> list[tuple[str, list[Candidate], dict]]:
    """Candidates to highlight: label, candidates and look."""
    parents = dict(marker='o', s=36, fc='none', ec=INK, lw=0.9)
    knees = [c for c in results.front if c.is_knee]
    random = [results.baseline] if results.baseline else []
    return [
        ('parents', results.parents, parents),
        ('knees', knees, dict(marker='D', s=44, c=GREEN, lw=0)),
        ('best of random', random, dict(marker='X', s=80, c=GREY, ec=INK, lw=0.7)),
        ('winner', [results.winner], dict(marker='*', s=190, c=ORANGE, lw=0)),
    ]
