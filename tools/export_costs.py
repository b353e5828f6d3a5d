"""What an exported network costs: size, FLOPs by two counts, latency beside a plain ViT."""

import argparse
import json
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from tas_lora import UserError, cli
from tas_lora.checks import positive
from tas_lora.costs.exported import check_costs, convention, counted_flops, flops_reasons, sizes
from tas_lora.costs.latency import RUNTIMES, measure, timm_vit
from tas_lora.errors import blame
from tas_lora.export import Source


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('export', help='folder that tools/export.py wrote')
    parser.add_argument('--beside', help='another export, timed in the same rounds')
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
    wanted = dict(onnx=['timm', 'onnx', 'onnxscript', 'onnxruntime'])
    packages = [p for r in args.runtimes for p in wanted.get(r, ['timm'])]
    missing = [package for package in dict.fromkeys(packages) if find_spec(package) is None]
    if missing:
        raise UserError(f'this needs {", ".join(missing)}: pip install "tas-lora[onnx,timm]"')
    if args.out:
        cli.check_output(args.out)


def read(folder: str) -> Source:
    """An export; raises :class:`UserError` if it cannot be read, or was edited."""
    with blame(f'{folder} is no export'):
        source = Source.read(folder)
    check_costs(source)
    return source


def count(source: Source) -> tuple[dict, list[Table]]:
    """Sizes and FLOPs, as figures and as tables."""
    found, ours = sizes(source), convention(source.network)['flops']
    table = Table('parameters', 'count', title='Size')
    table.add_row("ours, AutoFormer's convention", f'{found["ours"]:,}')
    table.add_row('tensors of the module', f'{found["module"]:,}')
    table.add_row('weights file, bytes', f'{found["file_bytes"]:,}')
    table.add_row('  of these a header: names and shapes', f'{found["header_bytes"]:,}')
    table.add_row('file over 4 bytes a parameter', f'{found["file_vs_params"]:.4f}')
    table.add_row('  without the header', f'{found["data_vs_params"]:.4f}')
    counted = counted_flops(source.net, source.network)
    reasons = flops_reasons(source.net, source.network)
    flops = Table('multiply-accumulates of one image', 'count', title='FLOPs')
    flops.add_row("ours, AutoFormer's convention", f'{ours:,.0f}')
    for reason, more in reasons.items():
        flops.add_row(f'  {reason}', f'{-more:+,.0f}')
    flops.add_row("torch's counter, on the module", f'{counted:,.0f}')
    figures = dict(params=found, flops=dict(ours=ours, counted=counted, reasons=reasons))
    return figures, [table, flops]


def time(args: argparse.Namespace, source: Source) -> tuple[dict, Table]:
    """Latency in each runtime, as figures and as a table."""
    nets = {'export': source.net, "timm's ViT": timm_vit(source.network)}
    if args.beside:
        nets['beside'] = read(args.beside).net
    nets = {name: net.to(args.device) for name, net in nets.items()}
    images = source.random_images(args.batch_size).to(args.device)
    found = measure(nets, images, args.runtimes, args.rounds)
    threads = f', {torch.get_num_threads()} threads' if args.device == 'cpu' else ''
    title = f'Milliseconds of a batch of {args.batch_size} on {args.device}{threads}'
    table = Table('runtime', *nets, *(f'export / {name}' for name in list(nets)[1:]), title=title)
    for runtime, row in found.items():
        ratios = (
            f'{r["median"]:.3f} ({r["spread"][0]:.3f}-{r["spread"][1]:.3f})'
            for r in row['versus'].values()
        )
        table.add_row(runtime, *(f'{row[name]["median"]:.2f}' for name in nets), *ratios)
    return found, table


def main():
    """Parse, count, time, print."""
    args = parse_args()
    check_args(args)
    source = read(args.export)
    figures, tables = count(source)
    if args.runtimes:
        figures['latency_ms'], table = time(args, source)
        tables.append(table)
    console = Console(width=None if Console().is_terminal else 120)
    for table in tables:
        console.print(table)
    if args.out:
        Path(args.out).write_text(json.dumps(figures, indent=2) + '\n')


if __name__ == '__main__':
    cli.run(main)
