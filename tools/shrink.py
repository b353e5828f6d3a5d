"""From the pretrained ViT you have to the smaller network you need, in one go.

The original is fine-tuned if it has no head for your classes, ordered, trained in all sizes and
searched; the found subnet is trained alone and exported; a page compares. Each stage has a config
of its own. Started again after a kill, it continues.
"""

import tas_lora.startup  # noqa: F401  # isort: skip  signals, while the rest is imported

import argparse
from collections.abc import Callable
from pathlib import Path

from tas_lora import UserError, cli
from tas_lora.shrink import Request, shrink
from tas_lora.shrink.request import WAYS, read_limits


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add('source', help='timm:NAME, hf:FOLDER or mmpretrain:NAME')
    add('--data', required=True, help='folder with train/CLASS/*, test/CLASS/*, maybe val/CLASS/*')
    limit = "macs or params, up to 1 as a share of the original's; latency in ms, of one image "
    limit += 'on this CPU'
    several = dict(nargs='+', action='extend', metavar='COST=NUMBER')
    add('--limit', required=True, help=limit, **several)
    add('--out', required=True, help='folder to write; the same one continues')
    add('--checkpoint', help="weights of this model, if not the library's own")
    add('--way', choices=WAYS, default='all', help='what is trained (default: %(default)s)')
    add('--multiple', type=int, default=32, help='all widths are multiples of it')
    add('--formats', nargs='+', default=['all'], help='of the export, besides safetensors')
    add('--no-flip', dest='flip', action='store_false', help='left and right matter')
    new_head = 'fine-tune a new head, although the source has one for as many classes'
    add('--new-head', action='store_true', help=new_head)
    _add_amounts(add)
    args = parser.parse_args()
    if Path(args.out).exists() and not Path(args.out).is_dir():
        raise UserError(f'--out {args.out} is a file; name a folder')
    args.limits = read_limits(args.limit)
    del args.limit
    return args


def _add_amounts(add: Callable) -> None:
    """Options that say how much work is spent."""
    add('--epochs', type=int, default=30, help='of all sizes (default: %(default)s)')
    add('--finetune-epochs', type=int, help='of the original (default: as --epochs)')
    add('--polish-epochs', type=int, help='of the found subnet alone (default: half of --epochs)')
    add('--batch-size', type=int, default=64, help='images of a step (default: %(default)s)')
    add('--img-size', type=int, help='side of the images, if not its own')
    add('--amp', action='store_true', help='train in bfloat16, if this machine is fast in it')
    add('--seed', type=int, default=0, help='of all draws (default: %(default)s)')
    add('--workers', type=int, default=1, help='processes that read training images')
    add('--population', type=int, default=50, help='subnets of a generation of the search')
    add('--generations', type=int, default=20, help='generations of the search')
    add('--batches', type=int, default=8, help='training batches that the order is scored on')
    add('--sizes', type=int, default=6, help='random subnets to test for the page')
    scratch = 'do not train the found architecture from random weights, to compare'
    add('--no-scratch', dest='scratch', action='store_false', help=scratch)


def main():
    """Parse, run all stages, and say where the page is."""
    args = parse_args()
    page = shrink(Request(**vars(args)), cli.SafeConsole())
    cli.say(f'Page: {page}\nNetwork: {page.parent / "export"}')


if __name__ == '__main__':
    cli.run(main)
