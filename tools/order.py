"""Order a supernet before it is sliced, measure each dimension, and propose a space for a budget.

Neurons, heads and channels are permuted by a score, blocks ranked by what their absence costs. The
network at full size computes what it did before. The folder gets ordered.pth (weights), ordered.py
(config), damage.json and damage.png (each dimension alone, before and after), space.json.
"""

import tas_lora.startup  # noqa: F401  # isort: skip  signals, while the rest is imported

from mmengine.device import get_device
from rich.progress import Progress

from tas_lora import cli
from tas_lora.checks import natural, positive, usable_device, usable_folder
from tas_lora.ordering import inputs, report
from tas_lora.ordering.run import Clock, order_supernet
from tas_lora.ordering.space import check_limits


def parse_args():
    """Command line."""
    parser = cli.config_parser(__doc__, work_dir=False)
    parser.add_argument(
        'checkpoint', nargs='?', help='weights (default: load_from or init_cfg of CONFIG)'
    )
    parser.add_argument('--out', required=True, help='folder to write')
    parser.add_argument(
        '--score',
        default='tas_lora.TaylorScore',
        help='registered score: tas_lora.TaylorScore, or without labels tas_lora.OutputScore or '
        'tas_lora.ActivationScore (default: %(default)s)',
    )
    parser.add_argument(
        '--batches', type=int, default=8, help='training batches to score, validation ones to test'
    )
    parser.add_argument(
        '--limit',
        nargs='+',
        default=['macs=0.5'],
        metavar='COST=SHARE',
        help='budget: macs or params, as a share of the original (default: macs=0.5)',
    )
    parser.add_argument(
        '--multiple',
        default='32',
        help="widths of the space are multiples of it; 'auto' times linear layers on the device",
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of images and score')
    parser.add_argument('--device', default=get_device(), help='device to compute on')
    args = parser.parse_args()
    positive(args.batches, '--batches', int)
    natural(args.seed, '--seed')
    args.limits = inputs.read_limits(args.limit)
    check_limits(args.limits)
    inputs.check_multiple(args.multiple)
    usable_device(args.device, '--device')
    usable_folder(args.out, '--out')
    return args


def main():
    """Order and report."""
    args = parse_args()
    with Progress(transient=True) as progress:
        found, proposal, paths = order_supernet(args, Clock(progress))
    console = cli.SafeConsole()
    console.print(report.damage_table(found['before'], found['after'], proposal))
    cli.say(*report.sentences(found, proposal), *paths, sep='\n')


if __name__ == '__main__':
    cli.run(main)
