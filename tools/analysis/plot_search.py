"""Draw a search: every subnet it scored, by size and loss."""

import argparse
import json
from math import isnan

from tas_lora import UserError, cli
from tas_lora.search import read_history


def scored_lines(path: str, score: str) -> list[dict]:
    """Lines of a history with a score; a subnet that was too large for the memory has none."""
    history = read_history(path)
    lines = [line for line in history if {'params', 'generation', score} <= set(line)]
    if all(isnan(line[score]) for line in lines):
        raise UserError(f'no line of {path} has a {score!r}; the first has {sorted(history[0])}')
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
    history = scored_lines(args.history, args.score)

    import matplotlib

    matplotlib.use('Agg')  # also without a screen
    from matplotlib import pyplot as plt

    column = {key: [line[key] for line in history] for key in ('params', 'generation', args.score)}
    # After a search in bfloat16, only what was scored again in float32 can be the result.
    finals = [line for line in history if line.get('precision') == history[-1].get('precision')]
    sign = 1 if args.rule == 'less' else -1
    best = min(finals, key=lambda line: (isnan(line[args.score]), sign * line[args.score]))
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
