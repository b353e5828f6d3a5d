"""Test a checkpoint, adapted or plain, and print its metrics."""

import argparse

import project_path  # noqa: F401
from nas_lora.evaluation import Scorer, load_model

from tas_lora import cli


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = cli.config_parser(__doc__, work_dir=False)
    parser.add_argument('checkpoint', help=".pth or .safetensors file with the model's names")
    parser.add_argument('--part', choices=['val', 'test'], default='test')
    parser.set_defaults(work_dir=None)
    return parser.parse_args()


def main() -> None:
    """Load, score and print."""
    args = parse_args()
    cfg = cli.config_from(args)
    scores = Scorer(cfg, args.part)(load_model(cfg, args.checkpoint))
    cli.say(', '.join(f'{name} {value:.4f}' for name, value in scores.items()))


if __name__ == '__main__':
    cli.run(main)
