"""Write tables and figures of the study from its records.

python projects/nas_lora/tools/report.py
"""

import argparse
from pathlib import Path

import project_path
from nas_lora.cells.choices import draw_probabilities
from nas_lora.study.figures import draw_masks, draw_scores
from nas_lora.study.methods import METHODS, SETS
from nas_lora.study.records import read_records
from nas_lora.study.report import (
    ablations_table,
    costs_table,
    differences_table,
    levels_table,
    mean_choices,
    methods_table,
    read_study,
)

from tas_lora import UserError, cli
from tas_lora.atomic_files import write_atomic
from tas_lora.provenance import read_json

COSTS = ('vit_s', 'vit_s_bf16', 'sam_base', 'sam_huge')


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--records', type=Path, default=project_path.PROJECT / 'results')
    add('--out', type=Path, help='folder to write to (default: the records)')
    add('--runs', type=Path, help='folder of the trainings, for a sheet of masks')
    add('--images', type=Path, help='images and masks of the test part, for that sheet')
    add('--data', choices=SETS, default='emoji', help='set of that sheet')
    add('--methods', nargs='+', choices=METHODS, default=['decoder', 'lora', 'nas_lora'])
    add('--numbers', type=int, nargs='+', default=[2, 9, 17, 30, 41, 60], help='test images shown')
    return parser.parse_args()


def main() -> None:
    """Write ``tables.md``, ``scores.png``, ``choices_SET.png`` and, on demand, ``masks.png``."""
    args = parse_args()
    out = args.out or args.records
    study = read_study(args.records)
    out.mkdir(parents=True, exist_ok=True)
    text = tables(study, args.records)
    write_atomic(out / 'tables.md', text)
    cli.say(text)
    draw_scores(study, out / 'scores.png')
    for data, runs in study.items():
        if 'nas_lora' in runs:
            draw_probabilities(mean_choices(runs['nas_lora']), out / f'choices_{data}.png')
    if (args.runs is None) != (args.images is None):
        raise UserError('--runs and --images go together: a sheet of masks needs both')
    if args.runs:
        draw_masks(shown(study, args), args.runs, args.images, args.numbers, out / 'masks.png')


def shown(study: dict, args: argparse.Namespace) -> dict[str, dict]:
    """Records of the sheet's methods by label, of the first seed."""
    runs = study.get(args.data, {})
    missing = [method for method in args.methods if method not in runs]
    if missing:
        raise UserError(f'--methods {missing[0]}: there is no record of it on {args.data}')
    return {METHODS[method].label: runs[method][min(runs[method])] for method in args.methods}


def tables(study: dict, folder: Path) -> str:
    """All tables as Markdown, those of levels and costs if there are records."""
    found = {
        'Methods': methods_table(study),
        'Variants of NAS-LoRA': ablations_table(study),
        'What the search is worth': differences_table(study),
    }
    if levels := read_records(folder / 'levels.jsonl'):
        found['Folding and merging'] = levels_table(list(levels.values()))
    costs = {shape: folder / f'costs_{shape}.json' for shape in COSTS}
    costs = {s: read_json(path, kind=dict) for s, path in costs.items() if path.is_file()}
    if costs:
        found['Costs of a step'] = costs_table(costs)
    return '\n\n'.join(f'## {title}\n\n{table}' for title, table in found.items()) + '\n'


if __name__ == '__main__':
    cli.run(main)
