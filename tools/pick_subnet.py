"""Pick the best subnet within limits from a finished search."""

import argparse
import json
import sys
from pathlib import Path

from tas_lora import cli
from tas_lora.atomic_files import write_atomic
from tas_lora.engine.search import read_result
from tas_lora.search import best_within, read_history


def limit(text: str) -> tuple[str, float]:
    """Name and number of 'params=30e3'."""
    name, _, number = text.partition('=')
    try:
        return name, float(number)
    except ValueError:
        raise argparse.ArgumentTypeError(f'must be like params=30e3, got {text!r}') from None


def main():
    """Parse, pick, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folder', help='work directory of a search')
    parser.add_argument(
        '--max', nargs='+', type=limit, default=[], metavar='COST=NUMBER', help='upper limits'
    )
    parser.add_argument('--out', help='JSON file to write the subnet to')
    args = parser.parse_args()
    if args.out:
        cli.check_output(args.out)
    result = read_result(args.folder)
    lines = [
        line
        for line in read_history(Path(args.folder) / 'search_history.jsonl')
        if line.get('phase') == 'search'
    ]
    limits = {name: (None, number) for name, number in args.max}
    best = best_within(lines, limits, result['score'], result['rule'], estimates=True)
    if best.get('error'):
        cli.say(
            f'{result["score"]} of this subnet is an estimate, with a standard error of '
            f'{best["error"]:.2g}: the race dropped it. For exact scores, search with --exhaustive '
            'or with --goals',
            file=sys.stderr,
        )
    cli.say(json.dumps(best))
    if args.out:
        write_atomic(args.out, json.dumps(best, indent=2) + '\n')


if __name__ == '__main__':
    cli.run(main)
