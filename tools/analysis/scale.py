"""Hours and cost of the three stages of T, S and B on 1, 8 and 64 GPUs, from measured parts.

The parts are those of `make gpu` in --records; what is missing there is computed from an assumed
matrix rate and assumed shares of it, and marked. Method and results: docs/scale.md.
"""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from rich.table import Table

from tas_lora import SearchSpace, cli
from tas_lora.atomic_files import write_atomic
from tas_lora.checks import positive
from tas_lora.config import load_config
from tas_lora.costs import scale
from tas_lora.packaged import CONFIGS
from tas_lora.provenance import read_json

SIZES = dict(t='autoformer_t', s='autoformer_s', b='autoformer_b')
ASSUMED_RATE = 350e12  # multiply-adds a second: 70 % of an H100's peak in bfloat16
ASSUMED_SHARES = dict(  # of it: small layers leave more of a GPU idle
    t=dict(supernet=0.15, experts=0.15, search=0.2),
    s=dict(supernet=0.25, experts=0.25, search=0.3),
    b=dict(supernet=0.35, experts=0.35, search=0.4),
)


def parse_args():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--records', help='folder of tools/gpu_check.py')
    parser.add_argument('--reading', type=float, help='images a second that a core reads')
    parser.add_argument('--cores', type=int, default=16, help='for each GPU')
    parser.add_argument('--price', type=float, default=2.5, help='dollars for a GPU hour')
    parser.add_argument('--markdown', help='write the tables to this file')
    parser.add_argument('--json', help='write all numbers to this file')
    args = parser.parse_args()
    positive(args.cores, '--cores', int)
    positive(args.price, '--price', float)
    for path in filter(None, (args.markdown, args.json)):
        cli.check_output(path)
    return args


def records_in(folder: str | None) -> dict[str, dict]:
    """The records of a GPU check by part, without those of tiny sizes."""
    paths = sorted(Path(folder).glob('*.json')) if folder else []
    found = {path.stem: read_json(path, kind=dict) for path in paths}
    return {
        name: record
        for name, record in found.items()
        if record.get('status') == 'done' and not (record.get('key') or {}).get('quick', True)
    }


def recipe_of(config) -> scale.Recipe:
    """Epochs, batch and validations of a config."""
    base = config.auto_scale_lr.base_batch_size
    return scale.Recipe(config.train_cfg.max_epochs, base, config.train_cfg.val_interval)


def plan(size: str, records: dict, reading: float, assumed: scale.Assumptions) -> dict:
    """All numbers of a size."""
    configs = {
        stage: load_config(CONFIGS / f'{SIZES[size]}_{name}.py')
        for stage, name in (('supernet', 'supernet'), ('experts', 'moLE'))
    }
    config = configs['experts']
    subnet = SearchSpace.coerce(config.train_cfg.space).sample(np.random.default_rng(0))
    counted = scale.sizes_of(config.model, subnet)
    speeds = scale.measured_speeds(records, size)
    is_measured = speeds is not None
    if not is_measured:
        speeds = scale.assumed_speeds(counted, ASSUMED_RATE, ASSUMED_SHARES[size], assumed)
    recipes = {stage: recipe_of(config) for stage, config in configs.items()}
    found = list(scale.rows(counted, speeds, recipes, reading, assumed))
    return dict(counted=counted, speeds=speeds, is_measured=is_measured, rows=found)


def tables(plans: dict[str, dict], reading: float) -> list[Table]:
    """The parts and the stages."""
    parts = Table('size', 'stage', 'images/s of a GPU', 'cores to read as many', title='Parts')
    for name in ('gradients, MB', 'a checkpoint, MB'):
        parts.add_column(name)
    columns = ('GPUs', 'hours', 'dollars', 'bound by', 'images/s of a GPU, by each bound')
    stages = Table('size', 'stage', *columns, title='Stages')
    for size, found in plans.items():
        mark = '' if found['is_measured'] else ' (assumed)'
        for stage in scale.STAGES:
            speed, counted = found['speeds'][stage], found['counted'][stage]
            cores = '' if stage == 'search' else f'{scale.cores_needed(speed, reading):.0f}'
            sizes = [counted.get(f'{what}_bytes') for what in ('gradient', 'checkpoint')]
            cells = ['' if value is None else f'{value / 1e6:.0f}' for value in sizes]
            parts.add_row(size.upper(), stage, f'{speed:,.0f}{mark}', cores, *cells)
        for row in found['rows']:
            paces = sorted(row['paces'].items(), key=lambda pace: pace[1])
            cells = [row['stage'], str(row['gpus']), f'{row["hours"]:.3g}', f'{row["dollars"]:.3g}']
            cells += [row['bound'], ', '.join(f'{name} {pace:,.0f}' for name, pace in paces)]
            stages.add_row(size.upper(), *cells)
    return [parts, stages]


def main():
    """Compute, print, write."""
    args = parse_args()
    records = records_in(args.records)
    loading = (records.get('loading') or {}).get('figures') or {}
    reading = args.reading or loading.get('images_per_core_second', {}).get('train', 100.0)
    positive(reading, '--reading', float)
    assumed = replace(scale.Assumptions(), cores=args.cores, price=args.price)
    plans = {size: plan(size, records, reading, assumed) for size in SIZES}
    found = tables(plans, reading)
    cli.SafeConsole().print(*found)
    if args.markdown:
        write_atomic(args.markdown, cli.markdown(found))
    if args.json:
        report = dict(sizes=plans, reading=reading, assumed=asdict(assumed))
        write_atomic(args.json, json.dumps(report, indent=2) + '\n')


if __name__ == '__main__':
    cli.run(main)
