"""The files of MNIST's format, idx: their sizes must agree."""

import os
from math import prod
from pathlib import Path

from mmpretrain.datasets import MNIST

from ..errors import UserError

_IMAGES, _LABELS = 3, 1  # dimensions


def check_idx_files(data: MNIST) -> None:
    """Refuse idx files that are damaged, or whose images and labels are not equally many.

    MMPretrain pairs images and labels up to the end of the shorter file, without a word.

    Raises:
        UserError: Naming the file.
    """
    root, missing = Path(data.data_prefix['root']), []
    for name, _ in (*data.train_list, *data.test_list):  # MMPretrain wants all four
        if not (root / name.removesuffix('.gz')).is_file():
            missing.append(root / name.removesuffix('.gz'))
    if missing and data.download:
        return
    if missing:
        zipped = ' (unzip the .gz)' if Path(f'{missing[0]}.gz').is_file() else ''
        raise UserError(f'there is no file {missing[0]}{zipped}; {type(data).__name__} needs it')
    images, labels = (
        root / name.removesuffix('.gz')
        for name, _ in (data.test_list if data.test_mode else data.train_list)
    )
    counts = _count(images, _IMAGES), _count(labels, _LABELS)
    if counts[0] != counts[1]:
        raise UserError(
            f'{images} has {counts[0]:,} images, but {labels} has {counts[1]:,} labels; copy or '
            'download both again'
        )


def _count(path: Path, dimensions: int) -> int:
    """Number of items of an idx file of bytes, whose size must be what its header says."""
    with path.open('rb') as file:
        header = file.read(4 + 4 * dimensions)
    advice = 'copy or download it again'
    if header[:4] != bytes((0, 0, 8, dimensions)) or len(header) < 4 + 4 * dimensions:
        zipped = ' but a zipped file' if header[:2] == b'\x1f\x8b' else ''
        raise UserError(
            f'{path} is not an idx file of bytes in {dimensions} dimensions{zipped}; '
            f'{"unzip it" if zipped else advice}'
        )
    sizes = [int.from_bytes(header[i : i + 4], 'big') for i in range(4, len(header), 4)]
    expected = len(header) + prod(sizes)
    if os.path.getsize(path) != expected:
        raise UserError(
            f'{path} has {os.path.getsize(path):,} bytes, its header says {expected:,} '
            f'({" x ".join(map(str, sizes))}); {advice}'
        )
    return sizes[0]
