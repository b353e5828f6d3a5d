"""Search the best subnet within limits (stage 3)."""

from pathlib import Path

from tas_lora import UserError, apis, cli


def parse_args():
    """Command line."""
    parser = cli.config_parser(__doc__)
    parser.add_argument('checkpoint', help='checkpoint with trained experts, or a bare supernet')
    parser.add_argument(
        '--model',
        metavar='CONFIG',
        help='search with the model of this config, such as a variant in configs/ablations',
    )
    parser.add_argument(
        '--resume', action='store_true', help='go on with the search in the work directory'
    )
    cli.add_launcher(parser)
    return parser.parse_args()


def main():
    """Parse and search."""
    args = parse_args()
    cfg = cli.config_from(args)
    if not str((cfg.get('val_cfg') or {}).get('type')).endswith('SearchLoop'):
        raise UserError(f'{args.config} is no search config: its val_cfg is no search loop')
    if args.model is not None:
        options = {k: v for k, v in (args.cfg_options or {}).items() if k.startswith('model.')}
        cfg.model = apis.load_config(args.model, options).model
        cfg.work_dir = args.work_dir or f'work_dirs/{Path(args.model).stem}_search'
    if args.resume:
        cfg.val_cfg.resume = True
    apis.search(cfg, args.checkpoint)


if __name__ == '__main__':
    cli.run(main)
