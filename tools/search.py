"""Search the best subnet within limits (stage 3)."""

from tas_lora import apis, cli


def parse_args():
    """Command line."""
    parser = cli.config_parser(__doc__)
    parser.add_argument('checkpoint', help='checkpoint with trained experts, or a bare supernet')
    cli.add_launcher(parser)
    return parser.parse_args()


def main():
    """Parse and search."""
    args = parse_args()
    apis.search(cli.config_from(args), args.checkpoint)


if __name__ == '__main__':
    cli.run(main)
