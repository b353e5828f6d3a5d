"""Export several subnets of one supernet as small deltas on its weights, and compare each."""

import tas_lora.startup  # noqa: F401  # isort: skip  signals, while the rest is imported

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from tas_lora import Subnet, UserError, apis, cli
from tas_lora.atomic_files import write_together
from tas_lora.export.data import class_names, innermost
from tas_lora.export.family import (
    WEIGHTS,
    bytes_of_single_exports,
    export_family,
    family_differences,
)
from tas_lora.export.parity import TOLERANCE
from tas_lora.models.safe_load import read_checkpoint
from tas_lora.work_lock import held


def parse_args():
    """Command line."""
    parser = cli.config_parser(__doc__, work_dir=False)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--subnets',
        nargs='+',
        required=True,
        metavar='SUBNET.json',
        help='JSON files of subnets, from a search; a member is called like its file',
    )
    parser.add_argument('--out', required=True, help='folder to write to')
    return parser.parse_args()


def read_subnets(paths: list[str]) -> dict[str, Subnet]:
    """Subnets by the names of their files."""
    found = {}
    for path in paths:
        if (name := Path(path).stem) in found:
            raise UserError(f'two files of --subnets are called {name}; rename one')
        found[name] = Subnet.coerce(path)
    return found


def check_differences(found: dict[str, float]) -> None:
    """Refuse a family of which a member differs from the supernet."""
    for name, difference in found.items():
        cli.say(f'{name}: logits of 64 random images differ by at most {difference:.1e} deviations')
        if difference > TOLERANCE:
            raise UserError(f'{name} differs by more than {TOLERANCE:.0e}; nothing was written')


def main():
    """Parse, export, compare."""
    args = parse_args()
    cfg = apis.load_config(args.config, args.cfg_options)
    subnets = read_subnets(args.subnets)
    model = apis.load_supernet(cfg, args.checkpoint)
    loader = cfg.to_dict().get('test_dataloader') or cfg.to_dict().get('val_dataloader')
    classes = class_names(read_checkpoint(args.checkpoint), loader, model.num_classes)
    spec = model.image_spec
    shape = (64, spec['in_channels'], spec['img_size'], spec['img_size'])
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with TemporaryDirectory() as folder, held(args.out):
        export_family(model, subnets, folder, classes, innermost(loader))
        check_differences(family_differences(model, subnets, folder, images))
        write_together({Path(args.out, p.name): p.read_bytes() for p in Path(folder).iterdir()})
    size, single = Path(args.out, WEIGHTS).stat().st_size, bytes_of_single_exports(model, subnets)
    cli.say(
        f'Exported the parent and {len(subnets)} members to {args.out}: {size:,} bytes of weights, '
        f'{size / single:.0%} of {len(subnets) + 1} single exports'
    )


if __name__ == '__main__':
    cli.run(main)
