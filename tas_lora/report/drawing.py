"""Shared parts of the figures of a search; no display is needed.

The colours are from Okabe and Ito (2008): safe for colour-blind readers, and visible on white and
on black. Text and axes use ``INK``, which a page replaces by its own text colour.
"""

import re
from collections.abc import Iterable, Sequence
from io import StringIO
from math import isfinite

import numpy as np

from .results import Candidate, SearchResults

INK = '#1f2328'
BLUE, ORANGE, GREEN, GREY = '#0072b2', '#d55e00', '#009e73', '#8c8c8c'
MANY = 800  # with more points than this a vector image gets too large


def style():
    """Return the context to draw and save in: ``with style():``."""
    import matplotlib

    names = ('axes.edgecolor', 'axes.labelcolor', 'text.color', 'xtick.color', 'ytick.color')
    return matplotlib.rc_context(
        dict.fromkeys(names, INK)
        | {
            'axes.spines.right': False,
            'axes.spines.top': False,
            'axes.titlelocation': 'left',
            'axes.titlesize': 'medium',
            'font.size': 9,
            'hatch.color': GREY,
            'hatch.linewidth': 0.5,
            'legend.frameon': False,
            'legend.fontsize': 'small',
            'savefig.dpi': 150,
            'svg.fonttype': 'none',  # text stays text
            'svg.hashsalt': 'search',  # reproducible files
            'text.parse_math': False,  # a metric's name may contain a dollar sign
        }
    )


def canvas(width: float, height: float, rows: int = 1, columns: int = 1, **options):
    """Create a figure, size in inches, and a list of its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout='constrained')
    return figure, list(figure.subplots(rows, columns, squeeze=False, **options).flat)


def as_svg(figure, name: str) -> str:
    """Convert a figure to an ``svg`` element of a page.

    It fills the available width and takes the page's text colour, background and ``--blue``. Its
    ids begin with ``name``.
    """
    file = StringIO()
    nothing = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
    figure.savefig(file, format='svg', transparent=True, metadata=nothing)
    text = file.getvalue()
    text = text[text.index('<svg') :].replace(INK, 'currentColor').replace(BLUE, 'var(--blue)')
    text = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r'\1', text, count=1)
    return re.sub(r'(\bid="|href="#|url\(#)', rf'\g<1>{name}-', text)


def numbers_of(candidates: Iterable[Candidate], name: str) -> np.ndarray:
    """Return one cost of each candidate, NaN where unknown."""
    return np.array([c.numbers.get(name, np.nan) for c in candidates])


def draw_cloud(axes, places: np.ndarray, candidates: Sequence[Candidate], color: str, name: str):
    """Draw scores as points at ``places``; candidates that were dropped early are lighter."""
    scores = np.array([c.score for c in candidates])
    whole = np.array([c.is_complete for c in candidates], bool)
    look = dict(lw=0, c=color, rasterized=len(candidates) > MANY)
    for mask, label, size, alpha in ((whole, name, 14, 0.6), (~whole, f'{name}, dropped', 10, 0.3)):
        seen = mask & np.isfinite(scores)
        if seen.any():
            axes.scatter(places[seen], scores[seen], s=size, alpha=alpha, label=label, **look)


def focus(axes, results: SearchResults) -> None:
    """Scale to the better candidates; the worst few are outside, and the title counts them."""
    scores = np.array([c.score for c in results.candidates if isfinite(c.score)])
    low, high = np.quantile(scores, (0, 0.97) if results.rule == 'less' else (0.03, 1))
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    axes.set_ylim(low - margin, high + margin)
    outside = int(((scores < low - margin) | (scores > high + margin)).sum())
    if outside:
        text = f'{outside} worse not shown'
        axes.set_title(text, loc='right', fontsize='small', color=GREY)


def shade_limits(axes, low: float, high: float) -> None:
    """Hatch a strip beyond each limit that is close to the visible candidates."""
    left, right = axes.get_xlim()
    strip = 0.06 * (right - left)
    lowest, highest = left - (right - left), right + (right - left)
    label = 'beyond the limit'
    for limit, start in ((low, low - strip), (high, high)):
        if limit > 0 and lowest < limit < highest:
            end = start + strip
            axes.axvspan(start, end, fc='none', ec=GREY, hatch='////', lw=0, label=label)
            axes.axvline(limit, color=GREY, lw=1)
            label = None
            left, right = min(left, start), max(right, end)
    axes.set_xlim(left, right)


def draw_cells(axes, grid: np.ndarray, columns: Iterable, rows: Iterable, top: float, text: str):
    """Draw values as cells from transparent to blue, which suits any background.

    Args:
        axes: Axes to draw on.
        grid: Values (rows, columns), first row at the bottom.
        columns: Names of the columns.
        rows: Names of the rows.
        top: Value that is fully blue.
        text: Format of the text in a cell, such as '{:.0%}'; empty for no text.
    """
    from matplotlib.colors import LinearSegmentedColormap, to_rgba

    fade = LinearSegmentedColormap.from_list('fade', [to_rgba(BLUE, 0.04), to_rgba(BLUE, 1.0)])
    image = axes.pcolormesh(grid, cmap=fade, vmin=min(0, grid.min()), vmax=top)
    columns, rows = list(columns), list(rows)
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns)
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for (row, column), value in np.ndenumerate(grid) if text else ():
        color = 'white' if value > 0.55 * top else INK
        look = dict(ha='center', va='center', fontsize=7, color=color)
        axes.annotate(text.format(value), (column + 0.5, row + 0.5), **look)
    return image


def add_legend(figure, axes, columns: int = 6) -> None:
    """Put the legend of ``axes`` above all axes."""
    handles, labels = axes.get_legend_handles_labels()
    look = dict(columnspacing=1.2, handlelength=1.6)
    figure.legend(handles, labels, loc='outside upper left', ncols=columns, **look)
