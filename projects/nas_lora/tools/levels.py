"""Fold and merge the trained models of the study at each level, and record what is lost.

python projects/nas_lora/tools/levels.py --data nuclei --methods nas_lora

Takes the trainings of tools/compare.py, a minute or two each on one core. What has a record in
``levels.jsonl`` is not measured again.
"""

import argparse
from pathlib import Path

import project_path
import torch
from mmengine.runner import set_random_seed
from nas_lora.evaluation import load_model
from nas_lora.merging.take_away import levels_of
from nas_lora.study.methods import METHODS, SETS
from nas_lora.study.records import add_record, read_records, rounded
from nas_lora.study.tuning import TUNING_SEED

from tas_lora import UserError, cli
from tas_lora.config import load_config

FILE = 'levels.jsonl'


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--data', nargs='+', choices=SETS, default=['nuclei', 'stamps', 'emoji', 'classes'])
    add('--methods', nargs='+', choices=METHODS, default=['nas_lora'])
    add('--records', type=Path, default=project_path.PROJECT / 'results')
    add('--work-dir', type=Path, default=Path('work_dirs/nas_lora'), help='of compare.py')
    return parser.parse_args()


def main() -> None:
    """Measure all trainings that have no record of levels."""
    args = parse_args()
    torch.set_num_threads(1)
    trained = [
        record
        for data in args.data
        for record in read_records(args.records / f'{data}.jsonl').values()
        if record['method'] in args.methods and record['seed'] != TUNING_SEED
    ]
    if not trained:
        raise UserError(f'{args.records} has no record of {args.methods[0]}; run compare.py first')
    for record in trained:
        if record['run'] not in read_records(args.records / FILE):
            add_record(args.records / FILE, measured(record, args.work_dir / record['run']))
        cli.say(f'{record["run"]}: has its levels', flush=True)


def measured(record: dict, folder: Path) -> dict:
    """Test scores of a training's model at each level, and how each came about."""
    set_random_seed(0)
    cfg = load_config(folder / 'config.py')
    model = load_model(cfg, folder / f'epoch_{record["epochs"]}.pth')
    levels = rounded(levels_of(model, cfg))
    names = ('run', 'data', 'method', 'seed')
    return {name: record[name] for name in names} | dict(
        scores=record['scores']['test'], levels=levels
    )


if __name__ == '__main__':
    cli.run(main)
