"""Fold the adapters of a model, or merge them: exactly, by least squares, or by distillation.

python projects/nas_lora/tools/merge.py CONFIG CHECKPOINT --level fold --out DIR

Prints the change of the test metrics, R^2 of each layer for lossy levels, and the encoder's
parameters and time relative to the plain one. A merged encoder is what it was before it was
adapted. ViTSAM: in a config without adapters, ``pretrained=DIR/weights.safetensors`` loads the
written weights. ViTs of timm: ``--formats`` writes them for timm, MMPretrain, ONNX and others.
"""

import argparse
import json
from pathlib import Path

import project_path  # noqa: F401
import torch
from mmengine.config import Config
from mmengine.runner import set_random_seed
from nas_lora.evaluation import Scorer, calibration_images, images_of, load_model
from nas_lora.images.folders import check_new
from nas_lora.merging.leaving import check_formats, leave
from nas_lora.merging.take_away import (
    CALIBRATION,
    LEVELS,
    adapted_part,
    costs,
    plain_encoder,
    plain_model,
    save_taken,
    take_away,
)
from torch import nn

from tas_lora import cli
from tas_lora.atomic_files import write_atomic
from tas_lora.checks import positive


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = cli.config_parser(__doc__.splitlines()[0], work_dir=False)
    parser.add_argument('checkpoint', help='checkpoint of the adapted model')
    parser.add_argument('--level', choices=LEVELS, required=True)
    parser.add_argument('--out', type=Path, required=True, help='new or empty folder')
    parser.add_argument('--images', type=int, default=CALIBRATION, help='calibration images')
    parser.add_argument(
        '--formats', nargs='+', metavar='FORMAT', default=[], help='of tools/export.py, or all'
    )
    parser.add_argument('--rounds', type=int, default=30, help='timing rounds')
    parser.set_defaults(work_dir=None)
    return parser.parse_args()


def taken_encoder(model: nn.Module, level: str, cfg: Config) -> nn.Module:
    """The resulting encoder; a merged one is that of a model built without adapters."""
    if level == 'fold':
        return adapted_part(model)
    return plain_model(model, cfg).get_submodule(model.part)


def describe(report: dict) -> str:
    """The report as text."""
    lines = [f'{layer}: R^2 {value:.4f}' for layer, value in report['r2'].items()]
    for name, before in report['before'].items():
        after = report['after'][name]
        lines.append(f'{name} {before:.4f} -> {after:.4f} ({after - before:+.4f})')
    for name, cost in report['encoder'].items():
        low, high = cost['time']['spread']
        lines.append(
            f'{name} encoder: {cost["parameters"]:,} parameters, time '
            f'{cost["time"]["median"]:.3f} ({low:.3f} to {high:.3f}) of the plain one'
        )
    return '\n'.join(lines)


def main() -> None:
    """Load, fold or merge, measure and write."""
    args = parse_args()
    images, rounds = positive(args.images, '--images', int), positive(args.rounds, '--rounds', int)
    check_new(args.out)
    set_random_seed(0)
    torch.set_num_threads(1)  # times are of one core
    cfg = cli.config_from(args)
    model, scorer = load_model(cfg, args.checkpoint), Scorer(cfg)
    if args.formats:
        check_formats(model, args.level, args.formats)
    taken, r2 = take_away(model, args.level, lambda: calibration_images(cfg, model, images))
    report = dict(level=args.level, r2=r2, before=scorer(model), after=scorer(taken))
    encoders = dict(
        plain=plain_encoder(cfg),
        adapted=adapted_part(model),
        taken=taken_encoder(taken, args.level, cfg),
    )
    report['encoder'] = costs(encoders, 'plain', next(images_of(cfg, model, 'test', 4)), rounds)
    args.out.mkdir(parents=True, exist_ok=True)
    save_taken(taken, args.out / 'weights.safetensors')
    write_atomic(args.out / 'report.json', json.dumps(report, indent=1) + '\n')
    cli.say(describe(report))
    if args.formats:
        leave(taken, cfg, args.formats, args.out, cli.say)


if __name__ == '__main__':
    cli.run(main)
