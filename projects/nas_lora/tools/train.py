"""Train a config of this project; data paths are relative to the working directory."""

import argparse

import project_path  # noqa: F401
import torch
from mmengine.registry import RUNNERS

from tas_lora import apis, cli
from tas_lora.config import check_data
from tas_lora.errors import blame


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = cli.config_parser(__doc__)
    parser.add_argument(
        '--resume', action='store_true', help='resume from the latest checkpoint, if any'
    )
    cli.add_launcher(parser)
    return parser.parse_args()


def main() -> None:
    """Build the runner and train."""
    args = parse_args()
    cfg = cli.config_from(args)
    check_data(cfg, ('train_dataloader', 'val_dataloader'))
    with apis.work_dir_of(cfg) as note:
        if args.resume:
            apis.resume(cfg)
        if cfg.launcher == 'pytorch' and not torch.cuda.is_available():
            apis.use_gloo(cfg)
        with blame(f'{args.config} cannot be trained'):
            runner = RUNNERS.build(cfg)
        if note:
            runner.logger.warning(note)
        runner.prepare('train', 'val')
        runner.train()


if __name__ == '__main__':
    cli.run(main)
