"""Results that say what made them: JSON and PNG files."""

import json
from collections.abc import Callable, Mapping
from io import BytesIO
from math import isfinite
from pathlib import Path

import numpy as np

from ..atomic_files import write_together
from ..report.drawing import style
from ..structures import Subnet


def write(
    folder: str | Path,
    name: str,
    made_by: Mapping,
    result: Mapping,
    figures: Mapping[str, Callable],
) -> list[Path]:
    """Write ``NAME.json`` and a PNG a figure, all with what made them; returns the paths.

    Args:
        folder: Made if it is not there.
        name: Of the JSON file.
        made_by: :func:`~tas_lora.analysis.subjects.origin`. A PNG has it as text, under
            'Description'.
        result: Content beside it; see :func:`plain`.
        figures: By the name of their files, what draws them: each returns a Figure.
    """
    folder, made = Path(folder), plain(made_by)
    folder.mkdir(parents=True, exist_ok=True)
    parts = dict(made_by=made) | plain(result)
    lines = [f'{json.dumps(key)}: {json.dumps(part)}' for key, part in parts.items()]
    contents = {folder / f'{name}.json': '{\n' + ',\n'.join(lines) + '\n}\n'}
    for stem, draw in figures.items():
        contents[folder / f'{stem}.png'] = _png(draw, dict(Description=json.dumps(made)))
    write_together(contents)
    return list(contents)


def plain(value):
    """What JSON can hold: arrays as lists, numbers with six digits, NaN and infinity as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(f'{value:.6g}') if isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    return value.to_dict() if isinstance(value, Subnet) else value


def _png(draw: Callable, metadata: Mapping) -> bytes:
    file = BytesIO()
    with style():
        draw().savefig(file, format='png', metadata=metadata)
    return file.getvalue()
