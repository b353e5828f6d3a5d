"""Figures of the study: scores of methods, and masks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

import numpy as np

from tas_lora.errors import blame
from tas_lora.image_formats import open_image

from .comparison import MASKS, read_masks
from .methods import METHODS, SETS
from .report import COMPARED, NOT_SEARCHED, Study, points, runs_of

_NOTE = dict(color='white', fontsize=9, bbox=dict(color='black', pad=1.5))


def draw_scores(study: Study, path: Path) -> None:
    """Draw the test scores of all seeds by method, a panel for each data set."""
    from matplotlib.figure import Figure

    methods = [*COMPARED, *NOT_SEARCHED]
    labels = ['best operation alone' if m == 'best' else METHODS[m].label for m in methods]
    size = (2.2 + 2.1 * len(study), 0.8 + 0.27 * len(methods))
    figure = Figure(figsize=size, layout='constrained')
    panels = figure.subplots(1, len(study), sharey=True, squeeze=False)[0]
    for axes, data in zip(panels, study, strict=True):
        for row, method in enumerate(methods):
            values = [points(data, r) for r in runs_of(study, data, method).values()]
            color = '#d55e00' if method == 'nas_lora' else '#0072b2'
            if values:
                axes.plot(values, [row] * len(values), 'o', color=color, markersize=4, alpha=0.5)
                axes.plot(mean(values), row, '|', color=color, markersize=14, markeredgewidth=2)
        axes.set_title(SETS[data].label, fontsize=9)
        axes.set_xlabel('IoU, %' if SETS[data].metric == 'iou' else 'top-1, %', fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(axis='both', linewidth=0.3)
    panels[0].set_yticks(range(len(methods)), labels)
    panels[0].invert_yaxis()
    figure.savefig(path, dpi=130)


def draw_masks(
    records: Mapping[str, dict], runs: Path, images: Path, numbers: Sequence[int], path: Path
) -> None:
    """Draw images, true masks and the masks that trainings found.

    Args:
        records: Their records, by label.
        runs: Folder of the trainings.
        images: The test part of their data set.
        numbers: Which test images, in the order of their names.
        path: File to write.

    Raises:
        UserError: If an image is missing.
    """
    from matplotlib.figure import Figure

    with blame('the sheet of masks cannot be drawn'):
        names = [sorted((images / 'images').iterdir())[i].name for i in numbers]
        folders = [runs / record['run'] for record in records.values()]
        found = [read_masks(folder / MASKS)[list(numbers)] > 0.5 for folder in folders]
        side = found[0].shape[-1]
        pictures = [_picture(images / 'images' / name, side) for name in names]
        truth = [_picture(images / 'masks' / name, side)[..., 0] > 127 for name in names]
    rows = [pictures, truth, *found]
    titles = ['image', 'truth', *records]
    figure = Figure(figsize=(1.6 * len(numbers) + 0.3, 1.6 * len(rows)), layout='constrained')
    grid = figure.subplots(len(rows), len(numbers), squeeze=False)
    for line, row, title in zip(grid, rows, titles, strict=True):
        line[0].set_ylabel(title, fontsize=8)
        for axes, picture, true in zip(line, row, truth, strict=True):
            axes.set_xticks([])
            axes.set_yticks([])
            axes.imshow(picture, cmap='gray', interpolation='nearest')
            if row is not pictures and row is not truth:
                iou = (picture & true).sum() / max((picture | true).sum(), 1)
                axes.text(4, side - 6, f'IoU {iou:.2f}', **_NOTE)
    figure.savefig(path, dpi=90)


def _picture(path: Path, side: int) -> np.ndarray:
    picture = open_image(path).convert('RGB').resize((side, side))
    return np.asarray(picture)
