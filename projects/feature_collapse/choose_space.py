"""What each candidate space gives: the choice looks at supernet and independent training alone.

A space will do if bare subnets are alike (similarity of .9 and more), independent training is
ahead by a point or more, and 10 % more epochs gain the supernet less than .2. All on held-out
images.
"""

import argparse
import json
from itertools import combinations
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from feature_collapse import stages, training
from feature_collapse.edits import SPACES
from feature_collapse.plan import Net
from feature_collapse.settings import Study

from tas_lora import SearchSpace, cli
from tas_lora.atomic_files import write_atomic

FILE = 'spaces.json'


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--candidates', nargs='+', choices=SPACES, default=[*SPACES])
    parser.add_argument('--seed', type=int, default=100, help='none of the experiment')
    parser.add_argument('--independent', type=int, default=3, help='subnets trained alone')
    parser.add_argument('--scale', type=float, default=1.0, help='factor on all epochs')
    parser.add_argument('--out', default=Path(__file__).parent / 'results', help='folder')
    parser.add_argument('--work-dir', default='work_dirs/feature_collapse_spaces')
    parser.add_argument('--data-root', default='data/fashion_mnist')
    return parser.parse_args()


def study_of(name: str, args: argparse.Namespace) -> Study:
    """The experiment on a candidate."""
    work = Path(args.work_dir) / f'{name}_x{args.scale:g}'
    subnets = tuple(SearchSpace(**SPACES[name]).sample_distinct(6, np.random.default_rng(0)))
    return Study(work / 'records', work, args.data_root, subnets, scale=args.scale, space=name)


def nets(args: argparse.Namespace) -> list[Net]:
    """What is trained of each candidate."""
    alone = [Net('independent_same', args.seed, i) for i in range(args.independent)]
    return [Net('autoformer', args.seed), Net('ten_percent', args.seed), *alone]


def summary(name: str, args: argparse.Namespace) -> dict:
    """The criteria, from the records of a candidate."""
    study = study_of(name, args)
    found = {n: study.records.read(n.name) for n in nets(args)}
    bare, longer, *alone = found.values()
    table = bare['heldout']['similarity']
    off_diagonal = [table[i][j] for i, j in combinations(range(len(table)), 2)]
    gaps = [a['heldout']['top1'][0] - bare['heldout']['top1'][a['subnet']] for a in alone]
    return dict(
        space=SPACES[name],
        subnets=SearchSpace(**SPACES[name]).size,
        epochs=bare['epochs'],
        seconds=[record['seconds'] for record in found.values()],
        supernet_top1=bare['heldout']['top1'],
        similarity=[min(off_diagonal), max(off_diagonal)],
        independent_top1={a['subnet']: a['heldout']['top1'][0] for a in alone},
        gap=[round(gap, 2) for gap in gaps],
        mean_gap=round(mean(gaps), 2),
        gain_of_ten_percent=round(
            mean(longer['heldout']['top1']) - mean(bare['heldout']['top1']), 2
        ),
    )


def main() -> None:
    """Train what is missing, write the criteria of every candidate."""
    args = parse_args()
    torch.set_num_threads(1)
    path = Path(args.out) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    for name in args.candidates:
        study = study_of(name, args)
        images = training.load_images(study, 'heldout')
        stages.make_all(study, nets(args), images)
        known = json.loads(path.read_text()) if path.is_file() else {}
        found = summary(name, args)
        known[f'{name}, {found["epochs"]} epochs'] = found
        write_atomic(path, json.dumps(known, indent=1) + '\n')
        cli.say(json.dumps(found, indent=1))


if __name__ == '__main__':
    cli.run(main)
