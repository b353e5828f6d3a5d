"""Draw random subnets from a config's space and write one JSON file each."""

import json
from pathlib import Path

import numpy as np

from tas_lora import SearchSpace, UserError, apis, cli
from tas_lora.atomic_files import write_atomic
from tas_lora.checks import natural, positive


def parse_args():
    """Command line."""
    parser = cli.config_parser(__doc__, work_dir=False)
    parser.add_argument('--count', type=int, default=6, help='number of subnets')
    parser.add_argument('--seed', type=int, default=0, help='seed of the draws')
    parser.add_argument('--out', required=True, help='folder to write to')
    return parser.parse_args()


def main():
    """Parse, draw and write."""
    args = parse_args()
    positive(args.count, '--count', int)
    cfg = apis.load_config(args.config, args.cfg_options, ('space',))
    if 'space' not in cfg:
        raise UserError(f'{args.config} has no space to draw from')
    space, rng = SearchSpace.coerce(cfg.space), np.random.default_rng(natural(args.seed, '--seed'))
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    for i, subnet in enumerate(space.sample_distinct(args.count, rng)):
        path = folder / f'subnet_{i}.json'
        write_atomic(path, json.dumps(subnet.to_dict()) + '\n')
        cli.say(f'{path}  embed_dim {subnet.embed_dim}, depth {subnet.depth}')


if __name__ == '__main__':
    cli.run(main)
