"""Write tables and figures of the comparison from its records.

python projects/nas_lora/tools/report.py
"""

import argparse
from pathlib import Path

import project_path
from nas_lora.choices import draw_probabilities, probabilities_table
from nas_lora.report import (
    costs_table,
    draw_masks,
    levels_table,
    mean_choices,
    read_records,
    scores_table,
)

from tas_lora import cli
from tas_lora.atomic_files import write_atomic
from tas_lora.provenance import read_json


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--records', type=Path, default=project_path.PROJECT / 'results')
    parser.add_argument('--data-root', type=Path, default=Path('data/nuclei'))
    parser.add_argument('--out', type=Path, help='folder to write to (default: the records)')
    return parser.parse_args()


def main() -> None:
    """Write ``report.md``, ``choices.png`` and, if the images exist, ``masks.png``."""
    args = parse_args()
    out = args.out or args.records
    records = read_records(args.records)
    out.mkdir(parents=True, exist_ok=True)
    tables = {'Scores': scores_table(records), 'Levels': levels_table(records)}
    for path in sorted(args.records.glob('costs_*.json'), reverse=True):
        size = path.stem.removeprefix('costs_')
        tables[f'Costs, {size}'] = costs_table(read_json(path, kind=dict))
    if 'nas_lora' in records:
        found = mean_choices(records['nas_lora'])
        tables['Choices of NAS-LoRA, mean over seeds'] = probabilities_table(found)
        draw_probabilities(found, out / 'choices.png')
    text = '\n\n'.join(f'## {title}\n\n{table}' for title, table in tables.items()) + '\n'
    write_atomic(out / 'report.md', text)
    cli.say(text)
    if (args.data_root / 'test').is_dir():
        draw_masks(args.records, args.data_root / 'test', out / 'masks.png')
    else:
        cli.say(f'--data-root {args.data_root} has no images: masks.png is not written')


if __name__ == '__main__':
    cli.run(main)
