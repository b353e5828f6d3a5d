"""Trainable parameters of TAS-LoRA as a share of full fine-tuning, next to the published figures.

Counts the parameters of built models. Exits with 1 if a figure is off by more than 0.6 points (the
published figures are rounded to whole points).
"""

import sys
from pathlib import Path

import torch
from mmengine.registry import MODELS
from rich.table import Table

from tas_lora import apis, cli

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
RANKS = (2, 4, 8, 16)
PUBLISHED = {'t': (23, 35, 59, 107), 's': (32, 48, 79, 142), 'b': (11, 18, 33, 63)}
TOLERANCE = 0.6


def trainable_share(space: str, rank: int) -> float:
    """Parameters that stage 2 trains, in percent of the supernet's without the classifier."""
    options = {'model.backbone.mole.rank': rank}
    cfg = apis.load_config(CONFIGS / f'autoformer_{space}_moLE.py', options)
    with torch.device('meta'):  # shapes only
        model = MODELS.build(cfg.model)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.backbone.parameters() if not p.requires_grad)
    return 100 * trained / frozen


def main():
    """Count, print and compare."""
    table = Table(title='Trainable parameters, % of full fine-tuning')
    for column in ('space', 'rank', 'published', 'counted', 'difference'):
        table.add_column(column, justify='right')
    worst = 0.0
    for space, figures in PUBLISHED.items():
        for rank, published in zip(RANKS, figures, strict=True):
            share = trainable_share(space, rank)
            worst = max(worst, abs(share - published))
            difference = f'{share - published:+.2f}'
            table.add_row(space.upper(), f'{rank}', f'{published}', f'{share:.2f}', difference)
    cli.SafeConsole().print(table)
    cli.say(f'Largest difference {worst:.2f} points, allowed {TOLERANCE}')
    sys.exit(worst > TOLERANCE)


if __name__ == '__main__':
    cli.run(main)
