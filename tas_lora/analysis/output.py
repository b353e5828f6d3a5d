"""Results that say what made them: JSON and PNG with command, seed and digests of the weights."""

import argparse
import json
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from math import isfinite
from pathlib import Path

import numpy as np

from ..atomic_files import write_together
from ..errors import UserError
from ..report.drawing import style
from ..structures import Subnet

_PACKAGES = ('tas-lora', 'torch', 'mmengine', 'mmpretrain', 'numpy')


@dataclass(frozen=True)
class Net:
    """A checkpoint to look at, with the config it was trained by.

    Attributes:
        name: What figures call it.
        config: Path of the config.
        checkpoint: Path of the weights.
    """

    name: str
    config: str
    checkpoint: str

    @classmethod
    def parse(cls, text: str, option: str) -> 'Net':
        """From ``NAME=CONFIG:CHECKPOINT``, as ``option`` was given it."""
        name, equals, files = text.partition('=')
        config, colon, checkpoint = files.partition(':')
        if not (name and equals and config and colon and checkpoint):
            raise UserError(f'{option} takes NAME=CONFIG:CHECKPOINT, got {text!r}')
        return cls(name, config, checkpoint)

    def check(self) -> None:
        """Raise :class:`UserError` unless the weights are a file here."""
        if '://' in self.checkpoint or not Path(self.checkpoint).is_file():
            raise UserError(
                f'checkpoint {self.checkpoint} is not a file; results are kept with the SHA-256 of '
                'their weights, so download them first'
            )

    @property
    def digest(self) -> str:
        """SHA-256 of the weights."""
        self.check()
        return sha256(Path(self.checkpoint).read_bytes()).hexdigest()


def origin(args: argparse.Namespace, nets: Sequence[Net]) -> dict:
    """By what a result was made: command, seed, versions, and the digest of each checkpoint."""
    return dict(
        command=sys.argv,
        seed=args.seed,
        checkpoints={
            net.name: dict(config=net.config, checkpoint=net.checkpoint, sha256=net.digest)
            for net in nets
        },
        versions={package: _version(package) for package in _PACKAGES}
        | dict(python=platform.python_version()),
    )


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
        made_by: :func:`origin`. A PNG has it as text, under 'Description'.
        result: The rest of the content; see :func:`plain`.
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


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # on the path without an installation
        return 'not installed'
