"""Train a supernet (stage 1) or its experts and router (stage 2)."""

import tas_lora.startup  # noqa: F401  # isort: skip  signals, while the rest is imported
from tas_lora import UserError, apis, cli


def parse_args():
    """Command line, as in MMPretrain's train tool."""
    parser = cli.config_parser(__doc__)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='resume from a checkpoint, by default the latest in the work directory',
    )
    parser.add_argument(
        '--amp',
        nargs='?',
        const='bfloat16',
        choices=['bfloat16', 'float16'],
        help='mixed precision; bfloat16 by default',
    )
    parser.add_argument('--no-validate', action='store_true', help='train without validation')
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='scale learning rates with the batch size'
    )
    parser.add_argument(
        '--check-only',
        action='store_true',
        help='take one batch through training and validation without writing anything, then exit',
    )
    cli.add_launcher(parser)
    return parser.parse_args()


def main():
    """Parse, adjust the config and train."""
    args = parse_args()
    cfg = cli.config_from(args)
    if cfg.get('train_cfg') is None:
        raise UserError(
            f'{args.config} has no train_cfg, so it trains nothing; use tools/search.py for a '
            'search config'
        )
    if args.amp:
        cfg.optim_wrapper.update(type='tas_lora.SupernetOptimWrapper', amp=args.amp)
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.auto_scale_lr:
        if 'auto_scale_lr' not in cfg:
            raise UserError('--auto-scale-lr needs auto_scale_lr.base_batch_size in the config')
        cfg.auto_scale_lr.enable = True
    resume = args.resume == 'auto' or args.resume or False
    if args.check_only:
        apis.check_training(cfg, resume)
        cli.say(f'{args.config}: one batch passed through training, validation and hooks')
    else:
        apis.train(cfg, resume)


if __name__ == '__main__':
    cli.run(main)
