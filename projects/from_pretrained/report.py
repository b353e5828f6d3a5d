"""Tables and figures of all records, in results/.

python projects/from_pretrained/report.py
"""

import argparse
from io import BytesIO
from pathlib import Path

from from_pretrained.figures import draw_accuracy, draw_dimensions, draw_kept
from from_pretrained.tables import differences, others_table, targets_table, ways_table
from matplotlib.figure import Figure

from tas_lora import cli
from tas_lora.atomic_files import write_atomic
from tas_lora.provenance import read_json
from tas_lora.report.drawing import style

RESULTS = Path(__file__).parent / 'results'


def main() -> None:
    """Read the records; write tables.md and the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--results', default=str(RESULTS), help='folder of the records')
    folder = Path(parser.parse_args().results)
    ways = read_json(folder / 'ways.json', 'records')['records']
    others = read_json(folder / 'one_size.json', 'records')['records']
    damage = read_json(folder / 'damage.json', 'damage', kind=dict)
    parts = [
        '# Tables\n\nWritten by `report.py` from the records next to it.',
        *(ways_table(ways, split) for split in ('test', 'third')),
        others_table(others),
        differences(ways),
        targets_table(ways, others),
    ]
    write_atomic(folder / 'tables.md', '\n\n'.join(parts) + '\n')
    with style():
        write_figure(folder / 'accuracy.png', draw_accuracy(ways, others))
        write_figure(folder / 'dimensions.png', draw_dimensions(damage))
        write_figure(folder / 'kept.png', draw_kept(ways, damage['block_order']))
    cli.say(folder / 'tables.md')


def write_figure(path: Path, figure: Figure) -> None:
    """Write a figure as PNG."""
    content = BytesIO()
    figure.savefig(content, format='png')
    write_atomic(path, content.getvalue())


if __name__ == '__main__':
    cli.run(main)
