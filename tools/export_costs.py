"""What an exported network costs: size, multiply-adds by two counts, latency and memory."""

import argparse
import json
from pathlib import Path

import torch
from rich.table import Table

from tas_lora import UserError, cli
from tas_lora.atomic_files import write_atomic
from tas_lora.checks import positive
from tas_lora.costs.exported import RUNTIMES, check_costs, convention, counted_flops, measure
from tas_lora.errors import blame
from tas_lora.export import Source, find_formats


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('export', help='folder that tools/export.py wrote')
    parser.add_argument('--runtimes', nargs='*', choices=RUNTIMES, default=list(RUNTIMES))
    parser.add_argument('--batch-size', type=int, default=1)
    parser.add_argument('--rounds', type=int, default=20)
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    parser.add_argument('--out', help='write the figures to this JSON file')
    return parser.parse_args()


def check_args(args: argparse.Namespace) -> None:
    """Refuse what cannot be measured."""
    positive(args.batch_size, '--batch-size', int, most=10_000)
    positive(args.rounds, '--rounds', int, most=100_000)
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise UserError('--device cuda: there is no GPU; leave it out')
    if args.device == 'cuda' and 'onnx' in args.runtimes:
        raise UserError("ONNX Runtime is timed on CPUs; give --runtimes without 'onnx'")
    if 'onnx' in args.runtimes:
        find_formats(['onnx'])  # refuses if its packages are missing
    if args.out:
        cli.check_output(args.out)


def size_table(figures: dict, has_tables: bool) -> Table:
    """Parameters, file and multiply-adds of one image, with relative positions or without."""
    table = Table('size', 'count')
    table.add_row('parameters', f'{figures["params"]:,}')
    table.add_row('weights file, bytes', f'{figures["file_bytes"]:,}')
    counted = "multiply-adds, AutoFormer's convention" if has_tables else 'multiply-adds'
    table.add_row(counted, f'{figures["flops"]:,.0f}')
    table.add_row("multiply-adds, torch's counter", f'{figures["torch_flops"]:,.0f}')
    return table


def speed_table(args: argparse.Namespace, measured: dict) -> Table:
    """Latency in each runtime, and memory."""
    threads = f', {torch.get_num_threads()} threads' if args.device == 'cpu' else ''
    title = f'A batch of {args.batch_size} on {args.device}{threads}'
    table = Table('runtime', 'latency, ms', 'spread, ms', 'memory, MiB', title=title)
    for runtime, row in measured.items():
        memory = f'{row["memory"]:.1f}' if 'memory' in row else ''
        table.add_row(runtime, f'{row["latency"]:.2f}', f'{row["latency_spread"]:.2f}', memory)
    return table


def main():
    """Parse, count, time, print."""
    args = parse_args()
    check_args(args)
    with blame(f'{args.export} is not an export'):
        source = Source.read(args.export)
    check_costs(source)
    file = Path(source.folder, 'weights.safetensors')
    figures = convention(source.network)
    figures |= dict(file_bytes=file.stat().st_size, torch_flops=counted_flops(source.network))
    tables = [size_table(figures, source.network['max_relative_position'] is not None)]
    if args.runtimes:
        figures['measured'] = measure(
            source, args.runtimes, args.device, args.batch_size, args.rounds
        )
        tables.append(speed_table(args, figures['measured']))
    console = cli.SafeConsole(width=None if cli.SafeConsole().is_terminal else 120)
    for table in tables:
        console.print(table)
    if args.out:
        write_atomic(args.out, json.dumps(figures, indent=2) + '\n')


if __name__ == '__main__':
    cli.run(main)
