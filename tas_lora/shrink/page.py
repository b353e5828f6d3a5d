"""The page at the end: accuracy against MACs, a table, and how to load the result."""

import shlex
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

from ..atomic_files import write_atomic
from ..errors import printable
from ..packaged import command
from ..report import page as search_page
from ..report.drawing import BLUE, GREEN, GREY, INK, ORANGE, add_legend, as_svg, canvas, style
from ..report.page import in_words, quantity
from ..structures import Subnet
from .work import Work

_WAYS = dict(unordered=GREY, ordered=ORANGE, trained=BLUE)


def write_page(path: Path, work: Work, found: Mapping) -> None:
    """Write the page, and its figure as PNG into the folder ``compare``.

    Args:
        path: Of the page.
        work: Has the request and the records of the stages.
        found: What ``compare.json`` holds.
    """
    with style():
        figure = draw_sizes(found, work.found('original')['limits'].get('macs'))
        content = BytesIO()
        figure.savefig(content, format='png')
        svg = as_svg(figure, 'sizes')
    write_atomic(path.parent / 'compare' / 'sizes.png', content.getvalue())
    text = _template().render(
        request=work.request,
        found=found,
        best=next(size for size in found['sizes'] if size['name'] == 'found'),
        limits={n: quantity(v, n) for n, v in work.found('original')['limits'].items()},
        export=work.found('export'),
        stages={
            name: search_page.duration(stage['seconds']) + _resumed(stage['starts'])
            for name, stage in work.ledger.stages.items()
            if stage['done']
        },
        svg=svg,
        width=figure.get_figwidth(),
        command=shlex.join(command()),
    )
    write_atomic(path, printable(text))


def _template():
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folders = [Path(__file__).parent, Path(search_page.__file__).parent]
    environment = Environment(
        loader=FileSystemLoader(folders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters.update(quantity=quantity, words=lambda s: in_words(Subnet.from_dict(s)))
    return environment.get_template('page.html')


def _resumed(starts: int) -> str:
    return f', the last of {starts} starts' if starts > 1 else ''


def draw_sizes(found: Mapping, limit: float | None):
    """Draw test top-1 against MACs.

    Args:
        found: What ``compare.json`` holds.
        limit: MACs that were allowed; None without such a limit.
    """
    figure, (axes,) = canvas(7, 4)
    sizes = found['sizes']
    for way, color in _WAYS.items():
        points = [(size['macs'], size['top1'][way]) for size in sizes]
        axes.plot(*zip(*points, strict=True), color=color, marker='.', label=way)
    best = next(size for size in sizes if size['name'] == 'found')
    look = dict(ls='none', ms=9)
    axes.plot(best['macs'], found['alone']['polish'], '*', color=BLUE, label='found', **look)
    original = found['original']
    axes.plot(original['macs'], original['top1'], 's', color=INK, label='original', ls='none')
    if (scratch := found['alone'].get('scratch')) is not None:
        axes.plot(best['macs'], scratch, 'X', color=GREEN, label='from scratch', ls='none')
    if limit is not None:
        axes.axvline(limit, color=GREY, lw=1, ls=':', label='limit')
    axes.set(xlabel='multiply-adds', ylabel='test top-1, %', ylim=(0, None))
    axes.xaxis.set_major_formatter(lambda value, _: quantity(value, 'macs', '.3g'))
    add_legend(figure, axes, columns=7)
    return figure
