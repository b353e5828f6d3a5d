"""Measure time, memory and trainable parameters of a training step of each method.

python projects/nas_lora/tools/costs.py --size tiny
"""

import argparse
import json
from pathlib import Path

import project_path
import torch
from mmengine.registry import init_default_scope
from nas_lora.costs import SIZES, measure
from nas_lora.methods import METHODS

from tas_lora import UserError, cli
from tas_lora.atomic_files import write_atomic
from tas_lora.checks import positive

COMPARED = ['full', 'decoder', 'lora', 'conv_lora', 'adapter', 'vpt', 'nas_lora', 'nas_pc_lora']


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--size', choices=SIZES, default='tiny')
    parser.add_argument('--methods', nargs='+', choices=METHODS, default=COMPARED)
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--out', type=Path, default=project_path.PROJECT / 'results')
    return parser.parse_args()


def main() -> None:
    """Measure, write ``costs_SIZE.json`` and print."""
    args = parse_args()
    positive(args.rounds, '--rounds', int)
    if 'full' not in args.methods:
        raise UserError('--methods must include full, the baseline of all others')
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    init_default_scope('mmpretrain')
    found = measure(args.methods, args.size, args.rounds)
    write_atomic(args.out / f'costs_{args.size}.json', json.dumps(found, indent=1) + '\n')
    for name, record in found.items():
        low, high = record['time']['spread']
        cli.say(
            f'{name}: {record["trainable"]:,} trainable, {1e3 * record["seconds"]:.1f} ms, '
            f'{record["time"]["median"]:.3f} ({low:.3f} to {high:.3f}) of full, '
            f'{record["saved_mib"]:.1f} MiB saved, peak {record["peak_mib"]:.0f} MiB'
        )


if __name__ == '__main__':
    cli.run(main)
