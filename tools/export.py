"""Export a subnet as an ordinary network, read it back and compare its logits."""

import sys

import torch

from tas_lora import Subnet, apis, cli, export_subnet
from tas_lora.models.plain_vit import load_plain_vit

TOLERANCE = 1e-4


def parse_args():
    """Command line."""
    parser = cli.config_parser(__doc__, work_dir=False)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--subnet', required=True, help='JSON file as the search writes')
    parser.add_argument('--out', required=True, help='folder to write to')
    return parser.parse_args()


@torch.no_grad()
def logit_difference(model, subnet: Subnet, folder: str, images: int = 64) -> float:
    """Largest difference between supernet and export on seeded random images."""
    spec = model.image_spec
    generator = torch.Generator().manual_seed(0)
    shape = (images, spec['in_channels'], spec['img_size'], spec['img_size'])
    batch = torch.randn(shape, generator=generator)
    model.set_subnet(subnet)
    exported, _ = load_plain_vit(folder)
    return float((exported(batch) - model(batch, mode='tensor')).abs().max())


def main():
    """Parse, export, compare."""
    args = parse_args()
    model = apis.load_supernet(apis.load_config(args.config, args.cfg_options), args.checkpoint)
    subnet = apis.read_subnet(args.subnet)
    folder = export_subnet(model, subnet, args.out)
    difference = logit_difference(model, subnet, folder)
    held = difference <= TOLERANCE
    print(
        f'Exported to {folder}: logits of 64 random images differ from the supernet by at most '
        f'{difference:.1e} ({"within" if held else "ABOVE"} {TOLERANCE:.0e})'
    )
    sys.exit(0 if held else 1)


if __name__ == '__main__':
    cli.run(main)
