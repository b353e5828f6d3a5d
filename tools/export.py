"""Export a subnet as a standalone network in several formats, read each back and compare."""

import tas_lora.startup  # noqa: F401  # isort: skip  signals, while the rest is imported

import argparse
import sys
from pathlib import Path

from mmengine.config import Config

from tas_lora import UserError, apis, cli
from tas_lora.export import FORMATS, Format, Source, find_formats
from tas_lora.export.data import labelled_batches
from tas_lora.export.formats import ROOT
from tas_lora.export.int8 import compare as compare_int8
from tas_lora.export.int8 import compare_top1, quantise
from tas_lora.export.job import export_from_config
from tas_lora.export.onnx import OPSETS, check_opset
from tas_lora.export.parity import ParityCheck, check_place, forms_in
from tas_lora.models import SupernetClassifier
from tas_lora.provenance import read_json


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = cli.config_parser(__doc__, work_dir=False)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--subnet', required=True, help='JSON file of a subnet, from a search')
    parser.add_argument('--out', required=True, help='folder to write to')
    parser.add_argument(
        '--formats',
        nargs='+',
        default=['safetensors'],
        metavar='FORMAT',
        help=f'all, or some of {", ".join(each.name for each in FORMATS)}; the first is always '
        'written (default: only the first)',
    )
    parser.add_argument(
        '--opset', type=int, default=OPSETS[0], help=f'ONNX opset (default: {OPSETS[0]})'
    )
    parser.add_argument(
        '--int8', action='store_true', help='also quantise the ONNX file, and report the loss'
    )
    parser.add_argument(
        '--outside-space', action='store_true', help="accept a subnet outside the config's space"
    )
    parser.add_argument('--license', help="of the weights, for the model card, e.g. 'apache-2.0'")
    return parser.parse_args()


def add_int8(cfg: Config, model: SupernetClassifier, source: Source, folder: Path) -> None:
    """Quantise the ONNX file in ``folder`` and report, with top-1 if the test set exists."""
    small = quantise(folder)
    cli.say(compare_int8(source, folder, small))
    try:
        found = compare_top1(folder, small, labelled_batches(model, cfg.get('test_dataloader')))
    except UserError as error:
        cli.say(f'Top-1 of int8 was not measured: {error}')
    else:
        cli.say(
            f'Top-1 on {found["images"]} test images: {found["int8"]:.2f} % in int8, '
            f'{found["float32"]:.2f} % in float32'
        )


def check_formats(args: argparse.Namespace) -> tuple[list[Format], list[str]]:
    """Formats to write, the one at the folder's root first, and a line per skipped format."""
    formats, skipped = find_formats(args.formats)
    check_opset(args.opset)
    if args.int8 and 'onnx' not in [each.name for each in formats]:
        missing = [line for line in skipped if line.startswith('onnx ')]
        raise UserError(f'--int8 quantises the ONNX file; {[*missing, "add onnx to --formats"][0]}')
    formats = [ROOT, *(each for each in formats if each != ROOT)]
    check_place(args.out, formats)
    return formats, skipped


def report(checks: list[ParityCheck], skipped: list[str], before: list[Format], out: str) -> None:
    """Print what was exported, skipped and removed."""
    for line in (*checks, *(f'Skipped: {advice}' for advice in skipped)):
        cli.say(line)
    gone = [each.name for each in before if each not in forms_in(out)]
    if gone:
        cli.say(f'Removed from {out}, as they held another network: {", ".join(gone)}')


def main():
    """Parse, export and compare."""
    args = parse_args()
    formats, skipped = check_formats(args)
    cfg = apis.load_config(args.config, args.cfg_options)
    record = read_json(args.subnet, 'subnet file')
    record = record if isinstance(record, dict) else dict(subnet=record)
    there: list[Format] = []

    def then(model, source, checks) -> None:
        report(checks, skipped, there, args.out)
        for check in checks:
            if args.int8 and check.held and check.name == 'onnx':
                add_int8(cfg, model, source, check.folder)

    checks = export_from_config(
        cfg,
        args.checkpoint,
        record,
        args.out,
        formats,
        opset=args.opset,
        outside_space=args.outside_space,
        license=args.license,
        say=cli.say,
        before=lambda: there.extend(forms_in(args.out)),
        then=then,
    )
    sys.exit(0 if all(check.held for check in checks) else 1)


if __name__ == '__main__':
    cli.run(main)
