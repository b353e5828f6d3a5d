"""Tables and figures of the comparison, made from its records."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

import numpy as np

from tas_lora import UserError
from tas_lora.errors import blame
from tas_lora.image_formats import open_image
from tas_lora.provenance import read_json

from .comparison import read_masks
from .methods import METHODS

_NOTE = dict(color='white', fontsize=9, bbox=dict(color='black', pad=1.5))
SHOWN = ('full', 'lora', 'nas_lora')


def read_records(folder: Path) -> dict[str, list[dict]]:
    """Read the records of each method, in the order of ``METHODS``.

    Raises:
        UserError: If there are none, or a file is not a record.
    """
    found = []
    for path in sorted(folder.glob('*_seed*.json')):
        with blame(f'{path} is not a record; remove it and run compare.py again'):
            record = read_json(path, kind=dict)
            found.append(record | dict(label=METHODS[record['method']]))
    if not found:
        raise UserError(f'{folder} has no records; tools/compare.py writes them')
    by_method = {m: [r for r in found if r['method'] == m] for m in METHODS}
    return {method: records for method, records in by_method.items() if records}


def scores_table(records: dict[str, list[dict]]) -> str:
    """Mean and standard deviation over seeds of the test metrics, as Markdown."""
    rows = [['method', 'seeds', 'trainable', 'IoU', 'Dice', 'BER', 'MAE', 'CPU s an epoch']]
    for runs in records.values():
        scores = [[r['scores']['test'][m] for r in runs] for m in ('iou', 'dice', 'ber', 'mae')]
        seconds = mean(r['cpu_seconds_per_epoch'] for r in runs)
        first = [runs[0]['label'], str(len(runs)), f'{runs[0]["trainable"]:,}']
        rows.append([*first, *map(with_spread, scores), f'{seconds:.2f}'])
    return markdown(rows)


def levels_table(records: dict[str, list[dict]]) -> str:
    """Test IoU after folding and merging, mean over seeds; or the operations that refused."""
    rows = [['method', 'before', 'fold', 'merge(exact)', 'merge(least_squares)', 'R^2 of layers']]
    for runs in records.values():
        if all(run['levels'] for run in runs):
            before = mean(run['scores']['test']['iou'] for run in runs)
            cells = [_after(runs, level) for level in ('fold', 'exact', 'least_squares')]
            rows.append([runs[0]['label'], f'{before:.3f}', *cells, _r2(runs)])
    return markdown(rows)


def costs_table(costs: dict[str, dict]) -> str:
    """Table of the measurements of ``tools/costs.py``."""
    rows = [['method', 'trainable', 'CPU ms a batch', 'over full', 'kept for backward', 'peak']]
    for method, record in costs.items():
        low, high = record['time']['spread']
        rows.append(
            [
                METHODS[method],
                f'{record["trainable"]:,}',
                f'{1e3 * record["seconds"]:.0f}',
                f'{record["time"]["median"]:.2f} ({low:.2f} to {high:.2f})',
                f'{record["saved_mib"]:.1f} MiB',
                f'{record["peak_mib"]:.0f} MiB',
            ]
        )
    return markdown(rows)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a Markdown table. The first row is the header; numbers are right-aligned."""
    rule = ['---', *['---:'] * (len(rows[0]) - 1)]
    return '\n'.join(f'| {" | ".join(row)} |' for row in [rows[0], rule, *rows[1:]])


def with_spread(values: Sequence[float]) -> str:
    """Mean and, for several values, standard deviation."""
    spread = f' +- {stdev(values):.3f}' if len(values) > 1 else ''
    return f'{mean(values):.3f}{spread}'


def mean_choices(runs: list[dict]) -> dict[str, dict[str, float]]:
    """Mean probabilities over seeds, by short name of layer and part, such as '0.q'."""
    layers = runs[0]['choices']
    return {
        _short(layer): {
            name: mean(run['choices'][layer][name] for run in runs) for name in layers[layer]
        }
        for layer in layers
    }


def draw_masks(
    folder: Path, data: Path, path: Path, seed: int = 0, tiles: Sequence[int] = (1, 6, 9, 12)
) -> None:
    """Draw image, true mask and the masks of three methods for some test tiles.

    Args:
        folder: Folder of the records.
        data: The test part of the nuclei.
        path: File to write.
        seed: Seed of the masks.
        tiles: Numbers of the tiles, in the order of their names.

    Raises:
        UserError: If an image is missing.
    """
    from matplotlib.figure import Figure

    with blame('the sheet of masks cannot be drawn'):
        names = [sorted((data / 'images').iterdir())[i].name for i in tiles]
        images = [x / x.max() for x in _pictures(data / 'images', names)]  # they are dark
        columns = dict(image=images, truth=_masks(data / 'masks', names))
        for method in SHOWN:
            found = read_masks(folder / f'{method}_seed{seed}.png')
            columns[METHODS[method]] = [found[i] > 0.5 for i in tiles]
    figure = Figure(figsize=(2 * len(columns), 2 * len(tiles)), layout='constrained')
    grid = figure.subplots(len(tiles), len(columns), squeeze=False)
    for axes, (title, pictures) in zip(grid.T, columns.items(), strict=True):
        axes[0].set_title(title, fontsize=9)
        for ax, picture, truth in zip(axes, pictures, columns['truth'], strict=True):
            ax.set_axis_off()
            ax.imshow(picture, cmap='gray', vmin=0, interpolation='nearest')
            if title not in ('image', 'truth'):
                both, either = (picture & truth).sum(), (picture | truth).sum()
                ax.text(2, 61, f'IoU {both / max(either, 1):.2f}', **_NOTE)
    figure.savefig(path, dpi=100)


def _pictures(folder: Path, names: Sequence[str]) -> list[np.ndarray]:
    return [np.asarray(open_image(folder / name)) for name in names]


def _masks(folder: Path, names: Sequence[str]) -> list[np.ndarray]:
    return [picture > 127 for picture in _pictures(folder, names)]


def _short(layer: str) -> str:
    parts = layer.split('.')
    return f'{parts[parts.index("layers") + 1]}.{parts[-1]}'


def _after(runs: list[dict], level: str) -> str:
    refused = [r['levels'][level]['refused'] for r in runs if 'refused' in r['levels'][level]]
    if refused:
        operations = {text.split(' is in the way')[0].split(': ')[-1] for text in refused}
        return f'refused: {", ".join(sorted(operations))}'
    return f'{mean(r["levels"][level]["scores"]["iou"] for r in runs):.3f}'


def _r2(runs: list[dict]) -> str:
    values = [v for run in runs for v in run['levels']['least_squares']['r2'].values()]
    return f'{min(values):.2f} to {max(values):.2f}'
