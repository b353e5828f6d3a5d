"""Test subnets of a checkpoint."""

import tas_lora.startup  # noqa: F401  # isort: skip  signals, while the rest is imported

import json
from operator import methodcaller
from pathlib import Path

from mmengine.dist import is_main_process

from tas_lora import UserError, apis, cli, read_subnet
from tas_lora.atomic_files import write_atomic


def parse_args():
    """Command line of MMPretrain's test tool, plus the subnets."""
    parser = cli.config_parser(__doc__)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--subnet',
        nargs='+',
        help="'smallest', 'largest', or JSON files as a search writes them "
        '(default: test_cfg.subnets of the config)',
    )
    parser.add_argument('--out', help='write the metrics to this JSON file')
    cli.add_launcher(parser)
    return parser.parse_args()


def main():
    """Parse, test and write the metrics."""
    args = parse_args()
    cfg = cli.config_from(args)
    names = args.subnet or []
    if len({Path(name).stem for name in names}) < len(names):
        raise UserError(f'--subnet: two of {names} have the same name; rename a file')
    if args.out:
        cli.check_output(args.out)
    subnets = {
        Path(name).stem: name if name in ('smallest', 'largest') else read_subnet(name)
        for name in names
    }
    metrics = apis.evaluate(cfg, args.checkpoint, subnets)
    if args.out and is_main_process():
        # Matrices, and values by class, become lists.
        text = json.dumps(metrics, indent=2, default=methodcaller('tolist'))
        write_atomic(args.out, text + '\n')


if __name__ == '__main__':
    cli.run(main)
