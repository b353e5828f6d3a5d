"""Draw a search: every subnet it scored, by size and loss."""

import argparse
import json
from pathlib import Path

from tas_lora import UserError, cli


def read_history(path: str) -> list[dict]:
    """Lines of a ``search_history.jsonl``."""
    try:
        lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f'{path} is no search history: {error}') from error
    if not lines:
        raise UserError(f'{path} is empty: the search scored no subnet')
    return lines


def main():
    """Parse and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('history', help='search_history.jsonl of a search')
    parser.add_argument('out', help='image to write, e.g. search.png')
    parser.add_argument('--score', default='cross_entropy', help='metric to draw')
    parser.add_argument('--rule', choices=['less', 'greater'], default='less', help='what is best')
    args = parser.parse_args()
    cli.check_output(args.out)
    history = read_history(args.history)
    if args.score not in history[0]:
        raise UserError(f'the history has no {args.score!r}, but {sorted(history[0])}')

    import matplotlib

    matplotlib.use('Agg')  # also without a screen
    from matplotlib import pyplot as plt

    column = {key: [line[key] for line in history] for key in ('params', 'generation', args.score)}
    choose = min if args.rule == 'less' else max
    # After a search in bfloat16, only what was scored again in float32 can be the result.
    finals = [line for line in history if line.get('precision') == history[-1].get('precision')]
    best = choose(finals, key=lambda line: line[args.score])
    subnets = len({json.dumps(line['subnet']) for line in history})
    figure, axes = plt.subplots(figsize=(7, 4), layout='constrained')
    points = axes.scatter(
        column['params'], column[args.score], c=[g + 1 for g in column['generation']], s=18
    )
    axes.scatter(best['params'], best[args.score], marker='*', s=220, c='tab:red', label='found')
    axes.set(
        xlabel='parameters',
        ylabel=f'{args.score} on held-out images',
        title=f'{subnets} subnets of one supernet',
    )
    axes.xaxis.set_major_formatter('{x:,.0f}')
    axes.legend(frameon=False)
    axes.spines[['top', 'right']].set_visible(False)
    figure.colorbar(points, label='generation')
    figure.savefig(args.out, dpi=120)
    print(f'{args.out}: {subnets} subnets')


if __name__ == '__main__':
    cli.run(main)
