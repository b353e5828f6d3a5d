"""Write tables and figures of the study from its records.

python projects/nas_lora/tools/report.py
"""

import argparse
from pathlib import Path

import project_path
from nas_lora.choices import draw_probabilities
from nas_lora.figures import draw_masks, draw_scores
from nas_lora.report import (
    ablations_table,
    differences_table,
    mean_choices,
    methods_table,
    read_study,
)

from tas_lora import UserError, cli
from tas_lora.atomic_files import write_atomic


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--records', type=Path, default=project_path.PROJECT / 'results')
    add('--out', type=Path, help='folder to write to (default: the records)')
    add('--runs', type=Path, help='folder of the trainings, for a sheet of masks')
    add('--images', type=Path, help='images and masks of the test part, for that sheet')
    add('--data', default='emoji', help='set of that sheet')
    add('--numbers', type=int, nargs='+', default=[2, 9, 17, 30, 41, 60], help='test images shown')
    return parser.parse_args()


def main() -> None:
    """Write ``tables.md``, ``scores.png``, ``choices_SET.png`` and, on demand, ``masks.png``."""
    args = parse_args()
    out = args.out or args.records
    study = read_study(args.records)
    out.mkdir(parents=True, exist_ok=True)
    text = tables(study)
    write_atomic(out / 'tables.md', text)
    cli.say(text)
    draw_scores(study, out / 'scores.png')
    for data, runs in study.items():
        if 'nas_lora' in runs:
            draw_probabilities(mean_choices(runs['nas_lora']), out / f'choices_{data}.png')
    if (args.runs is None) != (args.images is None):
        raise UserError('--runs and --images go together: a sheet of masks needs both')
    if args.runs:
        draw_masks(args.runs, args.images, args.data, out / 'masks.png', args.numbers)


def tables(study: dict) -> str:
    """All tables as Markdown."""
    found = {
        'Methods': methods_table(study),
        'Variants': ablations_table(study),
        'What the search is worth': differences_table(study),
    }
    return '\n\n'.join(f'## {title}\n\n{table}' for title, table in found.items()) + '\n'


if __name__ == '__main__':
    cli.run(main)
