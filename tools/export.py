"""Export a subnet as a standalone network in several formats, read each back and compare."""

import tas_lora.startup  # noqa: F401  # isort: skip  signals, while the rest is imported

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from mmengine.config import Config

from tas_lora import SearchSpace, Subnet, UserError, apis, cli, export_subnet
from tas_lora.export import FORMATS, Format, Source, find_formats, model_card
from tas_lora.export.data import class_names, innermost, labelled_batches
from tas_lora.export.examples import take_examples
from tas_lora.export.formats import ROOT
from tas_lora.export.int8 import compare as compare_int8
from tas_lora.export.int8 import compare_top1, quantise
from tas_lora.export.onnx import OPSETS, check_opset
from tas_lora.export.parity import (
    ParityCheck,
    check_place,
    forms_in,
    held_for_export,
    write_formats,
)
from tas_lora.export.preprocess import compare
from tas_lora.models import SupernetClassifier
from tas_lora.models.safe_load import read_checkpoint
from tas_lora.provenance import read_json

DATA = ('train_dataloader', 'test_dataloader', 'test_evaluator', 'data_preprocessor')
DATA += ('custom_imports',)


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


def check_space(cfg: Config, subnet: Subnet) -> None:
    """Refuse a subnet outside the config's space: the supernet was not trained for it."""
    parts = {'train_cfg': cfg.get('train_cfg'), 'model.router': cfg.model.get('router')}
    parts['val_cfg'] = cfg.get('val_cfg')  # last: a search may cover less than was trained
    spaces = ((name, part['space']) for name, part in parts.items() if part and part.get('space'))
    name, choices = next(spaces, (None, None))
    found = next(outside(SearchSpace.coerce(choices), subnet), None) if choices else None
    if found is not None:
        field, value, allowed = found
        raise UserError(
            f'the subnet is outside {name}.space: {field} is {value}, the space has {allowed}; '
            'choose another subnet, or add --outside-space'
        )


def outside(space: SearchSpace, subnet: Subnet) -> Iterator[tuple[str, object, tuple]]:
    """Fields of a subnet that are not among a space's choices: name, value and choices."""
    for name in ('embed_dim', 'depth', 'patch_size'):
        value, allowed = getattr(subnet, name), getattr(space, name) or (None,)
        if value not in allowed:
            yield name, value, allowed
    for name in ('num_heads', 'mlp_ratio'):
        allowed = getattr(space, name)
        for i, value in enumerate(getattr(subnet, name)):
            if value not in allowed:
                yield f'{name}[{i}]', value, allowed


def read_source(
    args: argparse.Namespace, cfg: Config, model: SupernetClassifier, subnet: Subnet, folder: str
) -> Source:
    """Export into ``folder`` and add the config's settings of the data."""
    data = {name: cfg.to_dict().get(name) for name in DATA}
    data['test_dataloader'] = loader = data['test_dataloader'] or cfg.get('val_dataloader')
    own = cfg.model.get('data_preprocessor')
    data['data_preprocessor'] = own or data['data_preprocessor']
    classes = class_names(read_checkpoint(args.checkpoint), loader, model.num_classes)
    export_subnet(model, subnet, folder, classes, innermost(loader))
    return Source.read(folder, data=data, opset=args.opset)


def compare_preparation(source: Source, model: SupernetClassifier, folder: Path) -> Source:
    """Add test images, and print how the export's preparation of them compares with the test's."""
    folder.mkdir()
    try:
        loader = source.data['test_dataloader']
        examples = take_examples(model, loader, source.description, folder)
        source, line = compare(replace(source, examples=examples))
    except UserError as error:
        line = f'not compared with the test pipeline on real images: {error}'
    cli.say(f'Preparation of images: {line}')
    return source


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
    subnet = Subnet.coerce(record)
    model = apis.load_supernet(cfg, args.checkpoint)
    with TemporaryDirectory() as folder:
        source = read_source(args, cfg, model, subnet, folder)
        if not args.outside_space:  # it would fit the supernet and its experts
            check_space(cfg, subnet)
        card = partial(model_card, source.description, record, source.data, args.license)
        source = compare_preparation(source, model, Path(folder, 'images'))
        card()  # refuses a damaged record before the formats are written
        with held_for_export(args.out):
            before = forms_in(args.out)
            checks = write_formats(model, source, formats, args.out, card)
            report(checks, skipped, before, args.out)
            for check in checks:
                if args.int8 and check.held and check.name == 'onnx':
                    add_int8(cfg, model, source, check.folder)
    sys.exit(0 if all(check.held for check in checks) else 1)


if __name__ == '__main__':
    cli.run(main)
