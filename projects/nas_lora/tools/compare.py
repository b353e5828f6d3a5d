"""Train the methods of the study on its data sets, seed by seed, and record each training.

python projects/nas_lora/tools/compare.py --data nuclei --methods lora nas_lora

A run that has a record is not trained again, so the same command continues a stopped study.
tools/report.py makes tables and figures of the records.
"""

import argparse
import sys
from pathlib import Path

import project_path
import torch
from nas_lora.study.comparison import train_and_measure
from nas_lora.study.methods import METHODS, SETS, Run
from nas_lora.study.records import add_record, read_records
from nas_lora.study.tuning import TUNING_SEED, candidates, chosen_rates

from tas_lora import UserError, cli
from tas_lora.checks import natural
from tas_lora.config import check_data
from tas_lora.provenance import versions

OUT = project_path.PROJECT / 'results'


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--data', nargs='+', choices=SETS, default=['nuclei', 'stamps', 'emoji', 'classes'])
    add('--methods', nargs='+', choices=METHODS, default=list(METHODS))
    add('--seeds', type=int, nargs='+', default=[0, 1, 2])
    add('--tune', action='store_true', help=f'try all rates of a method, with seed {TUNING_SEED}')
    add('--out', type=Path, default=OUT, help='folder of the records')
    add('--work-dir', type=Path, default=Path('work_dirs/nas_lora'), help='of the checkpoints')
    cli.add_cfg_options(parser)
    return parser.parse_args()


def main() -> None:
    """Train all runs that have no record yet."""
    args = parse_args()
    for seed in args.seeds:
        natural(seed, '--seeds')
    if args.cfg_options and args.out == OUT:
        raise UserError('--cfg-options make another study: give its records another --out')
    torch.set_num_threads(1)  # two studies side by side are faster than one with two threads
    for data in args.data:
        for run in runs_of(data, args):
            path = args.out / f'{data}.jsonl'
            if run.name in read_records(path):
                cli.say(f'{run.name}: has a record', flush=True)
                continue
            record = train(run, args)
            add_record(path, record)
            cli.say(describe(record), flush=True)


def runs_of(data: str, args: argparse.Namespace) -> list[Run]:
    """Runs on a data set, in order; the rates are those that tuning chose."""
    if args.tune:
        return [run for method in args.methods for run in candidates(data, method)]
    known = read_records(args.out / f'{data}.jsonl')
    rates = {method: chosen_rates(data, method, known) for method in args.methods}
    return [Run(data, m, seed, *rates[m]) for seed in args.seeds for m in args.methods]


def train(run: Run, args: argparse.Namespace) -> dict:
    """Train and return the record."""
    cfg = run.config(args.cfg_options)
    check_data(cfg, ('train_dataloader', 'val_dataloader', 'test_dataloader'))
    record = train_and_measure(run, cfg, args.work_dir / run.name)
    command = ' '.join(['compare.py', *sys.argv[1:]])
    return record | dict(made_by=dict(command=command, threads=1, versions=versions()))


def describe(record: dict) -> str:
    """One line about a run."""
    metric = SETS[record['data']].metric
    val, test = (record['scores'][part][metric] for part in ('val', 'test'))
    seconds = record['cpu_seconds_per_epoch']
    return f'{record["run"]}: {metric} val {val:.4g}, test {test:.4g}, {seconds:.1f} CPU s an epoch'


if __name__ == '__main__':
    cli.run(main)
