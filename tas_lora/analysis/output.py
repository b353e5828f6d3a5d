"""Write results as JSON and PNG files that record their origin."""

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
    """Write ``NAME.json`` and a PNG per figure, all with their origin; return the paths.

    Args:
        folder: Created if it does not exist.
        name: Name of the JSON file, without suffix.
        made_by: :func:`~tas_lora.analysis.subjects.origin`; a PNG has it as text, under
            'Description'.
        result: Other content of the JSON file; see :func:`plain`.
        figures: Functions that return a Figure, by file name without suffix.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    contents = rendered(folder, name, made_by, result, figures)
    write_together(contents)
    return list(contents)


def rendered(
    folder: Path, name: str, made_by: Mapping, result: Mapping, figures: Mapping[str, Callable]
) -> dict[Path, str | bytes]:
    """Contents of the files of :func:`write`, by path."""
    made = plain(made_by)
    parts = dict(made_by=made) | plain(result)
    lines = [f'{json.dumps(key)}: {json.dumps(part)}' for key, part in parts.items()]
    contents = {folder / f'{name}.json': '{\n' + ',\n'.join(lines) + '\n}\n'}
    metadata = dict(Description=json.dumps(made))
    for stem, draw in figures.items():
        with style(), BytesIO() as file:
            draw().savefig(file, format='png', metadata=metadata)
            contents[folder / f'{stem}.png'] = file.getvalue()
    return contents


def plain(value):
    """Convert to JSON types: arrays to lists, floats to six digits, NaN and infinity to None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(f'{value:.6g}') if isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    return value.to_dict() if isinstance(value, Subnet) else value
