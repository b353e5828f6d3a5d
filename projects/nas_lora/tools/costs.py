"""Measure time, memory, kernel launches and trainable parameters of a step of each method.

python projects/nas_lora/tools/costs.py --shape vit_s
"""

import argparse
import json
import os
import shlex
import sys
from pathlib import Path

import project_path
import timm
import torch
from mmengine.registry import init_default_scope
from nas_lora.study.costs import ALPHA_SHARE, METHODS, SHAPES, measure
from nas_lora.study.records import rounded

from tas_lora import UserError, cli
from tas_lora.atomic_files import write_atomic
from tas_lora.checks import positive
from tas_lora.provenance import versions


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--shape', choices=SHAPES, default='vit_s')
    parser.add_argument('--methods', nargs='+', choices=METHODS, default=list(METHODS))
    parser.add_argument('--amp', action='store_true', help='products in bfloat16')
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--out', type=Path, default=project_path.PROJECT / 'results')
    return parser.parse_args()


def main() -> None:
    """Measure, print, and write ``costs_SHAPE.json``, in bfloat16 ``costs_SHAPE_bf16.json``."""
    args = parse_args()
    positive(args.rounds, '--rounds', int)
    if not {'full', 'lora'} <= set(args.methods):
        raise UserError('--methods must include full and lora, the baselines of all others')
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    init_default_scope('mmpretrain')
    found = measure(args.methods, args.shape, args.rounds, args.amp)
    name = f'costs_{args.shape}{"_bf16" * args.amp}.json'
    text = json.dumps(about(args) | dict(methods=rounded(found)), indent=1)
    write_atomic(args.out / name, text + '\n')
    for method, record in found.items():
        low, high = record['to_full']['spread']
        cli.say(
            f'{method}: {record["trainable"]:,} trainable, {record["ms"]["median"]:.1f} ms, '
            f'{record["to_full"]["median"]:.3f} ({low:.3f} to {high:.3f}) of full, '
            f'{record["to_lora"]["median"]:.3f} of LoRA, launches {record["launches"]}, '
            f'{record["saved_mib"]:.1f} MiB saved, peak {record["peak_mib"]:.0f} MiB'
        )


def about(args: argparse.Namespace) -> dict:
    """How the record was made."""
    shape = SHAPES[args.shape]
    return dict(
        command=shlex.join(['python', 'projects/nas_lora/tools/costs.py', *sys.argv[1:]]),
        shape=shape.note,
        batch=shape.batch,
        pixels=shape.side,
        products='bfloat16' if args.amp else 'float32',
        optimizer='torch.optim.Adam(fused=True)',
        time='CPU time of the process, in turns; weights and alpha in the shares of the schedule',
        alpha_share=ALPHA_SHARE,
        rounds=args.rounds,
        seed=0,
        threads=torch.get_num_threads(),
        processor=processor(),
        load=f'{os.getloadavg()[0]:.1f} other and own processes on {os.cpu_count()} processors',
        versions=versions() | dict(timm=timm.__version__),
    )


def processor() -> str:
    """The processor's name, from Linux."""
    lines = Path('/proc/cpuinfo').read_text().splitlines()
    return next(line.split(':')[1].strip() for line in lines if line.startswith('model name'))


if __name__ == '__main__':
    cli.run(main)
