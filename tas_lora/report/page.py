"""One page about a search: its result, its course, random search, and how to reproduce it.

The page is a single file with inline figures, without scripts or network access. The figures are
also written as PNG files.
"""

import json
import re
import shlex
from functools import partial
from io import BytesIO
from math import inf, isfinite
from pathlib import Path

from ..atomic_files import write_atomic
from ..errors import printable
from ..structures import Subnet
from .drawing import as_svg, style
from .figures import (
    LABELS,
    TOP,
    draw_choices,
    draw_gates,
    draw_positions,
    draw_progress,
    draw_score_against,
)
from .results import SearchResults, read_results

PAGE = 'report.html'
_UNITS = dict(latency='\N{NO-BREAK SPACE}ms', memory='\N{NO-BREAK SPACE}MiB')


def write_report(folder: str | Path, score: str = 'cross_entropy', rule: str | None = None) -> Path:
    """Write ``report.html`` and ``figures/*.png`` into the work directory of a search.

    If the search is still running or was killed, the page shows the results so far and says so.

    Args:
        folder: The work directory; see :func:`read_results` for the files that are read.
        score: Metric by which candidates are ranked, unless the files name it.
        rule: 'less' or 'greater', unless the files name it; None infers it from the score.

    Returns:
        Path of the page.

    Raises:
        UserError: If the folder has no search history, or a file cannot be read.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    results = read_results(folder, score, rule)
    figures = _draw(results)
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters.update(score=as_score, words=in_words, quantity=quantity)
    page = environment.get_template('page.html').render(
        results=results,
        figures=figures,
        limits={name: limit_in_words(name, *ends) for name, ends in results.limits.items()},
        key_figures=key_figures(results),
        comparison=compare_with_random(results),
        run_cost=run_cost(results),
        command=shlex.join(map(str, results.identity.get('command') or ())),
        config=json.dumps(results.identity.get('config') or {}, indent=2),
        seed=(results.config.get('evolution') or {}).get('seed', 0),
        labels=LABELS,
        top=results.ranking[:TOP],
        has_dropped=any(isfinite(c.score) and not c.is_complete for c in results.candidates),
        test=tested_numbers(results.best.get('test') or {}),
        again=sum(c.generation == 0 for c in results.of('finals')),
    )
    write_atomic(results.folder / PAGE, printable(page))
    return results.folder / PAGE


def tested_numbers(test: dict[str, dict]) -> dict[str, dict]:
    """Metrics of each tested subnet without matrices and values by class, which are lists."""
    return {
        name: {metric: value for metric, value in values.items() if not isinstance(value, list)}
        for name, values in test.items()
    }


def in_words(subnet: Subnet) -> str:
    """Describe a subnet: '12 blocks, 192 wide, 3 to 4 heads, MLP ratio 3.5 to 4'."""
    ends = [(min(genes), max(genes)) for genes in (subnet.num_heads, subnet.mlp_ratio)]
    heads, ratio = (f'{a:g}' if a == b else f'{a:g} to {b:g}' for a, b in ends)
    blocks = '1 block' if subnet.depth == 1 else f'{subnet.depth} blocks'
    heads = '1 head' if heads == '1' else f'{heads} heads'
    patches = f', patches of {subnet.patch_size}' if subnet.patch_size else ''
    return f'{blocks}, {subnet.embed_dim} wide, {heads}, MLP ratio {ratio}{patches}'


def as_score(value: float) -> str:
    """Format a score with five significant digits; 'none' if it is not finite."""
    return f'{value:#.5g}'.rstrip('.') if isfinite(value) else 'none'


def quantity(value: float, name: str, form: str = '#.4g') -> str:
    """Format a cost with four significant digits and its unit or, if large, an SI prefix."""
    if not isfinite(value):
        return 'none'
    unit = _UNITS.get(name, '')
    for factor, prefix in (1e9, 'G'), (1e6, 'M'), (1e3, 'k'):
        if not unit and abs(value) >= factor:
            value, unit = value / factor, f'\N{NO-BREAK SPACE}{prefix}'
    return f'{value:{form}}'.rstrip('.') + unit


def duration(seconds: float) -> str:
    """Format as '2 h 15 min', '3 min 20 s' or '10.8 s'."""
    if seconds < 60:
        return f'{seconds:.3g} s'
    minutes, rest = divmod(round(seconds), 60)
    return f'{minutes} min {rest} s' if minutes < 60 else f'{minutes // 60} h {minutes % 60} min'


def limit_in_words(name: str, low: float, high: float) -> str:
    """Describe a limit, such as 'at most 6 M'."""
    least, most = (quantity(end, name, '.4g') for end in (low, high))
    if low > 0 and high < inf:
        return f'{least} to {most}'
    return f'at most {most}' if high < inf else f'at least {least}'


def key_figures(results: SearchResults) -> dict[str, str]:
    """Return the key figures that are known, by name."""
    best, cost = results.best, results.cost
    scored = len({c.subnet for c in results.candidates})
    found = {'candidates scored': f'{best.get("candidates", scored):,}'}
    if best.get('images_evaluated') and best.get('images_exhaustive'):
        share = best['images_evaluated'] / best['images_exhaustive']
        found['images evaluated, relative to exhaustive search'] = f'{share:.1%}'
    if 'seconds' in cost:
        found['wall time'] = duration(cost['seconds'])
    if 'images_per_second' in cost:
        found['images per second'] = f'{cost["images_per_second"]:,.0f}'
    return found


def compare_with_random(results: SearchResults) -> str:
    """Compare the winner with the best random draw in a sentence; '' without a random search."""
    random, winner = results.baseline, results.winner
    if random is None:
        return ''
    gain = results.gain(winner.score, random.score)
    both = f'{results.score} {as_score(winner.score)} against {as_score(random.score)}'
    if winner.subnet == random.subnet:
        return f'Search and random draws found the same subnet ({both}): selection gained nothing.'
    if gain == 0:
        return f'A tie: {both} for the best of as many random draws. Selection gained nothing.'
    margin = f'{abs(gain):.3g}' + (f' ({abs(gain / random.score):.1%})' if random.score else '')
    if gain > 0:
        return f'The search beats the best of as many random draws by {margin}: {both}.'
    return f'Random draws won by {margin}: the search has {both}. Selection did not help here.'


def run_cost(results: SearchResults) -> dict[str, str]:
    """Return all recorded costs of the run, by name."""
    names = dict(
        seconds='wall time', seconds_evaluating='of which evaluating', images='images evaluated'
    )
    return {
        names.get(name, name.replace('_', ' ')): (
            duration(value) if name.startswith('seconds') else f'{round(value, 1):,}'
        )
        for name, value in results.cost.items()
    }


def _draw(results: SearchResults) -> dict[str, list[dict]]:
    """Draw all figures, by section of the page, and write each as PNG."""
    score, place = results.score, partial(_place, results.folder / 'figures')
    with style():
        gates = []
        if results.gates:
            gates = [place('gates', draw_gates(results), 'Gates of the winner by layer')]
        return dict(
            progress=[place('progress', draw_progress(results), f'{score} of candidates in order')],
            costs=[
                place(
                    re.sub(r'\W', '_', f'score_against_{cost}'),
                    draw_score_against(results, cost),
                    f'{score} against {LABELS.get(cost, cost)}',
                )
                for cost in results.costs
            ],
            choices=[
                place('choices', draw_choices(results), 'Choices of the best and all candidates'),
                place('positions', draw_positions(results), 'Heads and MLP ratio by block'),
            ],
            gates=gates,
        )


def _place(folder: Path, name: str, figure, alt: str) -> dict:
    """Write a figure as PNG and return it as the template takes it; ``width`` is in inches."""
    folder.mkdir(exist_ok=True)
    content = BytesIO()
    figure.savefig(content)
    write_atomic(folder / f'{name}.png', content.getvalue())
    return dict(alt=alt, svg=as_svg(figure, name), width=figure.get_figwidth())
