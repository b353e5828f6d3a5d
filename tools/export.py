"""Export a subnet as an ordinary network, in several formats; read each back and compare."""

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from mmengine.config import Config

from tas_lora import UserError, apis, cli, export_subnet
from tas_lora.export import FORMATS, Source, export_formats, find_formats, model_card
from tas_lora.export.data import class_names, labelled_batches
from tas_lora.export.int8 import compare, compare_top1, quantise
from tas_lora.export.onnx import OPSETS, check_opset
from tas_lora.models import SupernetClassifier

LOADERS = ('train_dataloader', 'test_dataloader', 'test_evaluator')


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = cli.config_parser(__doc__, work_dir=False)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--subnet', required=True, help='JSON file as the search writes')
    parser.add_argument('--out', required=True, help='folder to write to')
    parser.add_argument(
        '--formats',
        nargs='+',
        default=['safetensors'],
        metavar='FORMAT',
        help=f'all, or some of {", ".join(each.name for each in FORMATS)} (default: safetensors)',
    )
    parser.add_argument(
        '--opset', type=int, default=OPSETS[0], help=f'of ONNX (default: {OPSETS[0]})'
    )
    parser.add_argument(
        '--int8', action='store_true', help='quantise the ONNX file, too, and say what that costs'
    )
    parser.add_argument('--license', help="of the weights, for the model card: 'apache-2.0'")
    return parser.parse_args()


def read_source(args: argparse.Namespace, cfg: Config, model: SupernetClassifier, folder: str):
    """Export into ``folder``, and add what config and search say."""
    subnet = apis.read_subnet(args.subnet)
    classes = class_names(cfg.get('test_dataloader'), model.head.num_classes)
    export_subnet(model, subnet, folder, classes)
    data = {name: cfg.to_dict().get(name) for name in LOADERS}
    description = json.loads(Path(folder, 'architecture.json').read_text('utf-8'))
    record = json.loads(Path(args.subnet).read_text('utf-8'))
    card = model_card(description, record, data, args.license)
    return Source.read(folder, card=card, data=data, opset=args.opset)


def add_int8(cfg: Config, model: SupernetClassifier, source: Source, folder: Path) -> None:
    """Quantise what is in ``folder`` and report, on the test set where it is at hand."""
    small = quantise(folder)
    print(compare(source, folder, small))
    try:
        found = compare_top1(folder, small, labelled_batches(model, cfg.get('test_dataloader')))
    except UserError as error:
        print(f'Top-1 of int8 is not known: {error}')
    else:
        print(
            f'Top-1 on {found["images"]} test images: {found["int8"]:.2f} % in int8, '
            f'{found["float32"]:.2f} % in float32'
        )


def main():
    """Parse, export, compare."""
    args = parse_args()
    formats, skipped = find_formats(args.formats)
    check_opset(args.opset)
    if args.int8 and 'onnx' not in [each.name for each in formats]:
        raise UserError('--int8 quantises the ONNX file; add onnx to --formats')
    cfg = apis.load_config(args.config, args.cfg_options)
    model = apis.load_supernet(cfg, args.checkpoint)
    with TemporaryDirectory() as folder:
        source = read_source(args, cfg, model, folder)
        outcomes = export_formats(model, source, formats, args.out)
        for line in (*outcomes, *(f'Skipped: {advice}' for advice in skipped)):
            print(line)
        for outcome in outcomes:
            if args.int8 and outcome.held and outcome.name == 'onnx':
                add_int8(cfg, model, source, outcome.folder)
    sys.exit(0 if all(outcome.held for outcome in outcomes) else 1)


if __name__ == '__main__':
    cli.run(main)
