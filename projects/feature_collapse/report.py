"""Tables and figures of the records that run.py has written; nothing is trained or measured."""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from feature_collapse import figures, regime, tables
from feature_collapse.edits import SPACES, drawn_subnets
from feature_collapse.records import FILE, Records

from tas_lora import UserError, cli
from tas_lora.atomic_files import write_atomic
from tas_lora.provenance import read_json

HERE = Path(__file__).resolve().parent
SEARCHED = ('heldout', 'test', 'regret', 'found_the_best')
REFERENCES = ('autoformer', 'full_finetune', 'single_lora', 'mole_random', 'mole', 'plus_single')
REFERENCES += ('longer', 'longer_single')
REFERENCES += ('dynas', 'full_finetune_dynas', 'single_lora_dynas', 'mole_dynas')
NAMES = dict(heldout='the held-out images', test='the test set')


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--results', default=HERE / 'results', help='folder of the records')
    parser.add_argument('--out', help='folder to write to; by default that of the records')
    parser.add_argument('--seeds', type=int, nargs='+', help='these alone, of the folder itself')
    return parser.parse_args()


def main() -> None:
    """Tables and figures of the folder, and of each condition that it holds."""
    args = parse_args()
    results, out = Path(args.results), Path(args.out or args.results)
    nets, families = nets_of(results, args.seeds)
    if not nets:
        asked = f' of the seeds {args.seeds}' if args.seeds else ''
        raise UserError(f'{results} has no records{asked}; run.py writes them')
    points = regime.points_of(nets, 'main', space_of(results))
    for folder in conditions_of(results):
        own = nets_of(folder)
        points += regime.points_of(own[0], folder.name, space_of(folder))
        compare(*own, out / folder.name)
    text = sections(nets, families)
    text += f'## Regimes, on the held-out images\n\n{regime.table(points)}\n'
    text += found_by_searches(results / 'search' / 'searches.json')
    text += transferred(Records(results).all('transfer'))
    text += spaces(results / 'spaces.json')
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / 'tables.md', text)
    cli.say(text)
    for part in measured(nets):
        for path in figures.draw_all(nets, families, part, out):
            cli.say(path)
    regime.draw(points, out / 'regimes.png')
    cli.say(out / 'regimes.png')


def nets_of(folder: Path, seeds: Sequence[int] | None = None) -> tuple[list[dict], list[dict]]:
    """The records of a condition's nets, and of the similarity of those trained alone."""
    known = Records(folder)
    return tuple(
        [record for record in known.all(kind) if not seeds or record['seed'] in seeds]
        for kind in ('net', 'similarity')
    )


def conditions_of(results: Path) -> list[Path]:
    """The folders of other conditions within a folder of records."""
    return [path.parent for path in sorted(results.glob(f'*/{FILE}'))]


def compare(nets: list[dict], families: list[dict], out: Path) -> None:
    """Tables of one condition, and the figures of its gains."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / 'tables.md', sections(nets, families))
    cli.say(out / 'tables.md')
    for part in measured(nets):
        figures.draw_gains(nets, part, out / f'gains_{part}.png')
        cli.say(out / f'gains_{part}.png')


def measured(nets: list[dict]) -> list[str]:
    """The sets of images that any of the nets was measured on."""
    return [part for part in NAMES if any(record[part] for record in nets)]


def space_of(folder: Path) -> str | None:
    """The one of ``SPACES`` whose subnets the records in a folder are of."""
    path = folder / 'subnets.json'
    subnets = read_json(path) if path.is_file() else None
    drawn = {name: [subnet.to_dict() for subnet in drawn_subnets(name)] for name in SPACES}
    return next((name for name, those in drawn.items() if those == subnets), None)


def found_by_searches(path: Path) -> str:
    """What searches found, mean and deviation over the seeds of the nets."""
    if not path.is_file():
        return ''
    rows, runs = [['experts', 'budget, params', 'search', *SEARCHED]], defaultdict(list)
    for row in read_json(path):
        runs[row['method'], row['share'], row['kind']].append(row)
    for (method, _, kind), own in runs.items():
        means = [tables.spread([row[name] for row in own], 4) for name in SEARCHED]
        rows.append([method, f'{own[0]["most"]:,.0f}', kind, *means])
    return f'## Searches of equal cost, mean over their seeds\n\n{tables.markdown(rows)}\n'


def sections(nets: list[dict], families: list[dict]) -> str:
    """The tables of each set that was measured."""
    return ''.join(
        f'## Top-1 on {NAMES[part]}, mean and deviation over seeds\n\n'
        f'{tables.top1_table(nets, families, part)}\n'
        f'## Paired differences on {NAMES[part]}, over subnets and seeds\n\n'
        f'{tables.difference_table(nets, part, REFERENCES)}\n'
        for part in measured(nets)
    )


def transferred(found: list[dict]) -> str:
    """Top-1 on digits by what the training started from, over subnets and seeds."""
    if not found:
        return ''
    rows = [['start', 'trainings', *NAMES.values()]]
    for start in dict.fromkeys(record['start'] for record in found):
        own = [record for record in found if record['start'] == start]
        rows.append([start, len(own), *(tables.spread([r[p] for r in own], 2) for p in NAMES)])
    return f'## Learning digits, top-1\n\n{tables.markdown(rows)}\n'


def spaces(path: Path) -> str:
    """What the candidates for the space gave."""
    if not path.is_file():
        return ''
    rows = [['space', 'subnets', 'epochs', 'supernet', 'similarity', 'gap', '10 % more epochs']]
    for name, found in read_json(path).items():
        top1 = found['supernet_top1']
        low, high = found['similarity']
        rows.append(
            [name, found['subnets'], found['epochs'], f'{sum(top1) / len(top1):.2f}']
            + [f'{low:.3f}-{high:.3f}', f'{found["mean_gap"]:.2f}']
            + [f'{found["gain_of_ten_percent"]:+.2f}']
        )
    return f'## Candidates for the space, on held-out images\n\n{tables.markdown(rows)}'


if __name__ == '__main__':
    cli.run(main)
