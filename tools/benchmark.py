"""Measure what experts, router and elastic slicing cost, against plain networks of the same widths.

All contestants take turns in one process; figures are medians of ratios within rounds, with the
middle half as spread. Targets and results: docs/speed.md. How a cost grows is seen from runs
with other values: --cfg-options model.backbone.mole.rank=64, space.depth=[2], ...
"""

import argparse
import json
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from mmengine.device import get_device
from rich.table import Table

from tas_lora import SearchSpace, Subnet, UserError, cli
from tas_lora.atomic_files import write_atomic
from tas_lora.checks import natural, positive, usable_device
from tas_lora.config import load_config
from tas_lora.costs import benchmark, processes
from tas_lora.costs.reference_models import multiply_adds
from tas_lora.costs.timing import matrix_rate, milliseconds, ratio

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
SPACES = dict(t='autoformer_t', s='autoformer_s', b='autoformer_b')
_PRECISIONS = dict(float32=torch.float32, bfloat16=torch.bfloat16)
_SPEEDS = {'images/s': 'images_per_second', 'of the limit': 'share_of_limit'}


def parse_args():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--sizes', nargs='+', choices=SPACES, default=['t'], help='spaces')
    parser.add_argument('--batch', type=int, default=16, help='images of a training step')
    parser.add_argument('--eval-batch', type=int, default=32, help='images of an evaluation')
    parser.add_argument('--rounds', type=int, default=9, help='rounds of all contestants')
    parser.add_argument(
        '--contestants',
        nargs='+',
        choices=benchmark.CONTESTANTS,
        help="whom to measure; 'static' and 'ours' always take part",
    )
    parser.add_argument(
        '--plain',
        action='store_true',
        help='measure a supernet without relative positions and experts, at full size and at a '
        'drawn subnet, in place of the contestants',
    )
    parser.add_argument('--device', default=get_device(), help='cpu or cuda')
    parser.add_argument('--amp', action='store_true', help='bfloat16 autocast for all')
    parser.add_argument('--seed', type=int, default=0, help='seed of the subnet, and of weights')
    parser.add_argument(
        '--peak-memory', action='store_true', help='also measure peak memory (CPU, Linux)'
    )
    parser.add_argument(
        '--quick', action='store_true', help='T at batch 4 in 3 rounds, whatever else is asked for'
    )
    cli.add_cfg_options(parser)
    parser.add_argument('--json', help='write all figures to this file')
    parser.add_argument('--markdown', help='write the tables to this file')
    args = parser.parse_args()
    if args.plain and args.contestants:
        raise UserError('--plain measures other contestants; leave out --contestants')
    args.contestants = args.contestants or benchmark.CONTESTANTS
    if args.quick:
        args.sizes, args.batch, args.eval_batch, args.rounds = ['t'], 4, 8, 3
    for field in ('batch', 'eval_batch', 'rounds'):
        positive(getattr(args, field), f'--{field.replace("_", "-")}', int)
    usable_device(args.device, '--device')
    for path in filter(None, (args.json, args.markdown)):
        cli.check_output(path)
    return args


def measure(size: str, args, rates: dict[str, float]) -> dict:
    """All figures of one space, at one subnet drawn from the seed.

    ``rates`` are multiply-adds a second by precision.
    """
    cfg = load_config(CONFIGS / f'{SPACES[size]}_moLE.py', args.cfg_options, ('space',))
    space = SearchSpace.coerce(cfg.space)
    subnet = space.sample(np.random.default_rng(natural(args.seed, '--seed')))
    torch.manual_seed(args.seed)
    names = dict.fromkeys(['static', 'ours', *args.contestants])
    models = benchmark.contestants(cfg.model, subnet, args.device, tuple(names))
    spec = models['ours'].image_spec
    batch = benchmark.batch_of(spec, args.batch, args.device)
    images, _ = benchmark.batch_of(spec, args.eval_batch, args.device)
    training = benchmark.measure_training(models, batch, args.rounds, args.amp)
    evaluation = benchmark.measure_evaluation(models, images, args.rounds, args.amp)
    activations = benchmark.measure_activations(models, batch, args.amp)
    hops = benchmark.measure_hops(models['ours'], space, batch, args.rounds)
    result = benchmark.summary(training, evaluation, activations, hops)
    result['contestants'] = _rows(training, evaluation, activations)
    speeds = benchmark.throughput(
        training,
        evaluation,
        (args.batch, args.eval_batch),
        {name: multiply_adds(subnet, spec, name) for name in (None, *models)},
        (rates['bfloat16' if args.amp else 'float32'], rates['bfloat16']),
    )
    for name, speed in speeds.items():
        result['contestants'][name] |= speed
    result['hops_ms'] = {name: milliseconds(seconds) for name, seconds in hops.items()}
    result['subnet'] = subnet.to_dict()
    if args.peak_memory:
        for name in models:
            peak = processes.peak_memory(cfg.model, subnet, name, args.batch)
            result['contestants'][name]['peak_mib'] = peak
    return result


def measure_plain(size: str, args) -> dict:
    """What elastic slicing alone costs, at full size and at a subnet drawn from the seed."""
    cfg = load_config(CONFIGS / f'{SPACES[size]}_moLE.py', args.cfg_options, ('space',))
    rng = np.random.default_rng(natural(args.seed, '--seed'))
    drawn = SearchSpace.coerce(cfg.space).sample(rng)
    torch.manual_seed(args.seed)
    subnets = dict(full=Subnet.coerce(cfg.model.backbone.arch), drawn=drawn)
    models = benchmark.plain_contestants(cfg.model, subnets, args.device)
    spec = models['plain full'].image_spec
    batch = benchmark.batch_of(spec, args.batch, args.device)
    images, _ = benchmark.batch_of(spec, args.eval_batch, args.device)
    training = benchmark.measure_training(models, batch, args.rounds, args.amp)
    evaluation = benchmark.measure_evaluation(models, images, args.rounds, args.amp)
    activations = benchmark.measure_activations(models, batch, args.amp)
    return benchmark.plain_summary(training, evaluation, activations) | dict(
        subnet=drawn.to_dict(),
        train_ms={name: milliseconds(seconds) for name, seconds in training.items()},
        eval_ms={name: milliseconds(seconds) for name, seconds in evaluation.items()},
        saved_mib={name: count / 2**20 for name, count in activations.items()},
    )


def _rows(training: dict, evaluation: dict, activations: dict) -> dict[str, dict]:
    """Times of each contestant, and against static; what only evaluates has no training."""
    return {
        name: dict(
            train_ms=milliseconds(training[name]) if name in training else None,
            train_vs_static=ratio(training[name], training['static']) if name in training else None,
            eval_ms=milliseconds(evaluation[name]),
            eval_vs_static=ratio(evaluation[name], evaluation['static']),
            saved_mib=activations[name] / 2**20 if name in activations else None,
        )
        for name in evaluation
    }


def machine(args, rates: dict[str, float]) -> dict:
    """Where, when and how it was measured."""
    on_gpu = args.device.startswith('cuda')
    commit = subprocess.run(
        ['git', '-C', CONFIGS, 'describe', '--always', '--dirty'],
        capture_output=True,
        text=True,
        check=False,
    )
    return dict(
        command=shlex.join(['python', 'tools/benchmark.py', *sys.argv[1:]]),
        commit=commit.stdout.strip(),
        device=torch.cuda.get_device_name() if on_gpu else _processor(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        matrix_gmac_per_second={name: rate / 1e9 for name, rate in rates.items()},
    )


def _processor() -> str:
    info = Path('/proc/cpuinfo')  # Linux; elsewhere Python knows
    names = re.findall(r'^model name\s*: (.*)$', info.read_text(), re.M) if info.is_file() else []
    return names[0] if names else platform.processor()


def tables(results: dict[str, dict]) -> list[Table]:
    """For each space: the summary, the contestants and the parts of a step."""
    found = []
    for size, result in results.items():
        table = Table('figure', 'median', 'spread', title=f'AutoFormer-{size.upper()}')
        for name, value in result.items():
            if isinstance(value, dict) and 'spread' in value:
                table.add_row(name, f'{value["median"]:.3f}', _spread(value))
        found += [table, _contestants(result), _throughput(result)]
        table = Table('part of a step', 'ms', 'spread', title='Ours: part of a step')
        for name, value in result['hops_ms'].items():
            table.add_row(name, f'{value["median"]:.2f}', _spread(value))
        found.append(table)
    return found


def plain_tables(results: dict[str, dict]) -> list[Table]:
    """For each space the ratios of the supernet and of the drawn subnet."""
    found = []
    for size, result in results.items():
        title = f'AutoFormer-{size.upper()}: slicing alone, against static'
        table = Table('subnet', 'figure', 'median', 'spread', title=title)
        for name in ('full', 'drawn'):
            for figure, value in result[name].items():
                table.add_row(name, figure, f'{value["median"]:.3f}', _spread(value))
        found.append(table)
    return found


def _contestants(result: dict) -> Table:
    columns = ('train ms', 'vs static', 'saved MiB', 'peak MiB', 'eval ms', 'vs static')
    table = Table('contestant', *columns, title='Contestants')
    for name, row in result['contestants'].items():
        values = [row['train_ms'], row['train_vs_static'], row['saved_mib'], row.get('peak_mib')]
        values += [row['eval_ms'], row['eval_vs_static']]
        table.add_row(name, *map(_cell, values))
    return table


def _throughput(result: dict) -> Table:
    columns = [f'{what}{name}' for what in ('train ', 'eval ') for name in _SPEEDS]
    table = Table('contestant', *columns, title='Images a second, and share of the matrix rate')
    for name, row in result['contestants'].items():
        speeds = [row.get(what, {}) for what in ('train', 'eval')]
        cells = [_with_spread(speed.get(key)) for speed in speeds for key in _SPEEDS.values()]
        table.add_row(name, *cells)
    return table


def _cell(value) -> str:
    if value is None:
        return ''
    median = value['median'] if isinstance(value, dict) else value
    return f'{median:.2f}' if median < 10 else f'{median:.0f}'


def _with_spread(value: dict | None) -> str:
    if value is None:
        return ''
    low, median, high = (f'{number:.3g}' for number in sorted([value['median'], *value['spread']]))
    return f'{median} ({low} to {high})'


def _spread(value: dict) -> str:
    return ' .. '.join(f'{bound:.3f}' for bound in value['spread'])


def main():
    """Parse, measure, print, write."""
    args = parse_args()
    rates = {name: matrix_rate(args.device, dtype) for name, dtype in _PRECISIONS.items()}
    if args.plain:
        results = {size: measure_plain(size, args) for size in args.sizes}
    else:
        results = {size: measure(size, args, rates) for size in args.sizes}
    where, found = machine(args, rates), (plain_tables if args.plain else tables)(results)
    console = cli.SafeConsole()
    console.print(*found)
    console.print_json(data=where)
    if args.json:
        report = results[args.sizes[0]] | dict(sizes=results, machine=where)
        write_atomic(args.json, json.dumps(report, indent=2) + '\n')
    if args.markdown:
        write_atomic(args.markdown, cli.markdown(found))


if __name__ == '__main__':
    cli.run(main)
