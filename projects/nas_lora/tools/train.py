"""Train by a config of this project, in the folder where its data are."""

import argparse

import project_path  # noqa: F401
from mmengine.registry import RUNNERS

from tas_lora import UserError, apis, cli
from tas_lora.errors import blame


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = cli.config_parser(__doc__)
    parser.add_argument('--resume', action='store_true', help='go on from the latest checkpoint')
    cli.add_launcher(parser)
    return parser.parse_args()


def main() -> None:
    """Build the runner, train."""
    args = parse_args()
    cfg = cli.config_from(args)
    if args.resume:
        found = apis.find_resumable(cfg.work_dir)
        if found is None:
            raise UserError(f'--resume: {cfg.work_dir} has no checkpoint; leave --resume out')
        cfg.resume, cfg.load_from = True, str(found)
    with blame(f'{args.config} cannot be trained'):
        runner = RUNNERS.build(cfg)
    runner.train()


if __name__ == '__main__':
    cli.run(main)
