"""Search the best subnet within limits (stage 3)."""

from tas_lora import UserError, apis, cli


def parse_args():
    """Command line."""
    parser = cli.config_parser(__doc__)
    parser.add_argument('checkpoint', help='checkpoint with trained experts, or a bare supernet')
    cli.add_launcher(parser)
    return parser.parse_args()


def main():
    """Parse and search."""
    args = parse_args()
    cfg = cli.config_from(args)
    if not str((cfg.get('val_cfg') or {}).get('type')).endswith('SearchLoop'):
        raise UserError(f'{args.config} is no search config: its val_cfg is no search loop')
    apis.search(cfg, args.checkpoint)


if __name__ == '__main__':
    cli.run(main)
