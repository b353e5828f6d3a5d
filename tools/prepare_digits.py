"""Write scikit-learn's 1,797 handwritten digits in the file format of MNIST."""

import argparse
import struct
from pathlib import Path

import numpy as np

from tas_lora import UserError, cli
from tas_lora.atomic_files import write_atomic


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write an array of bytes as an idx file: magic number, sizes, data (all big-endian)."""
    unsigned_byte = 0x08
    header = struct.pack('>BBBB', 0, 0, unsigned_byte, array.ndim)
    sizes = struct.pack(f'>{array.ndim}I', *array.shape)
    write_atomic(path, header + sizes + array.astype(np.uint8).tobytes())


def main():
    """Hold out a fifth of the digits for testing and write the four files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', default='data/digits', help='folder to write to')
    out = Path(parser.parse_args().out)
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise UserError('scikit-learn is missing: pip install scikit-learn') from error
    digits = load_digits()
    images = np.rint(digits.images * 255 / 16)  # stored as 0..16
    splits = train_test_split(
        images, digits.target, test_size=0.2, random_state=0, stratify=digits.target
    )
    out.mkdir(parents=True, exist_ok=True)
    names = ('train-images-idx3', 't10k-images-idx3', 'train-labels-idx1', 't10k-labels-idx1')
    for name, array in zip(names, splits, strict=True):
        write_idx(out / f'{name}-ubyte', array)
    cli.say(f'{out}: {len(splits[0])} training digits, {len(splits[1])} test digits')


if __name__ == '__main__':
    cli.run(main)
