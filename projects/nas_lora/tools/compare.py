"""Train all methods on nuclei, seed by seed, and write one record per training.

python projects/nas_lora/tools/compare.py

A run that has a record is not trained again, so the same command resumes a stopped comparison. It
needs data/nuclei and the tiny SAM of pretrain_stamps.py. tools/report.py makes tables and figures.
"""

import argparse
import json
import os
from pathlib import Path

import project_path
import torch
from nas_lora.comparison import train_and_measure
from nas_lora.methods import METHODS, Run

from tas_lora import UserError, cli
from tas_lora.atomic_files import write_atomic
from tas_lora.checks import natural, positive


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--methods', nargs='+', choices=METHODS, default=list(METHODS))
    add('--seeds', type=int, nargs='+', default=[0, 1, 2])
    add('--rates', type=float, nargs='+', help="in place of the configs', in turn")
    add('--out', type=Path, default=project_path.PROJECT / 'results', help='folder of the records')
    add('--work-dir', type=Path, default=Path('work_dirs/nas_lora'), help='of the checkpoints')
    add('--data-root', default='data/nuclei', help='folder of prepare_nuclei.py')
    add('--pretrained', default='work_dirs/pretrain_stamps/epoch_5.pth', help='the tiny SAM')
    cli.add_cfg_options(parser)
    return parser.parse_args()


def check(args: argparse.Namespace) -> None:
    """Refuse mistakes that would only show during a training."""
    for seed in args.seeds:
        natural(seed, '--seeds')
    for rate in args.rates or ():
        positive(rate, '--rates', float)
    if not Path(args.data_root, 'train').is_dir():
        raise UserError(f'--data-root {args.data_root} has no train; run tools/prepare_nuclei.py')
    if not Path(args.pretrained).is_file():
        raise UserError(f'--pretrained {args.pretrained} is not a file; train pretrain_stamps.py')


def main() -> None:
    """Train all runs that have no record yet."""
    args = parse_args()
    check(args)
    torch.set_num_threads(1)  # on such small tensors a second thread gains nothing
    runs = [Run(m, s, r) for s in args.seeds for m in args.methods for r in args.rates or [None]]
    args.out.mkdir(parents=True, exist_ok=True)
    for run in runs:
        path = args.out / f'{run.name}.json'
        if path.is_file():
            cli.say(f'{run.name}: has a record', flush=True)
            continue
        record = train(run, args)
        cli.say(describe(record), flush=True)


def train(run: Run, args: argparse.Namespace) -> dict:
    """Train and write the record and the masks."""
    cfg = run.config(args.data_root, args.pretrained, args.cfg_options)
    folder = args.work_dir / run.name
    folder.mkdir(parents=True, exist_ok=True)
    record = train_and_measure(run, cfg, folder)
    os.replace(folder / 'masks.png', args.out / f'{run.name}.png')
    write_atomic(args.out / f'{run.name}.json', json.dumps(record, indent=1) + '\n')
    return record


def describe(record: dict) -> str:
    """One line about a run."""
    val, test = (record['scores'][part]['iou'] for part in ('val', 'test'))
    seconds = record['cpu_seconds_per_epoch']
    return f'{record["run"]}: IoU val {val:.3f}, test {test:.3f}, {seconds:.2f} CPU s an epoch'


if __name__ == '__main__':
    cli.run(main)
