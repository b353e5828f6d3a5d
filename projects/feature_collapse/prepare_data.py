"""Fashion-MNIST, unzipped, where the configs look for it.

From a folder that has the four files, zipped or not (such as that of the Debian package
dataset-fashion-mnist), or, without one, by MMPretrain's download.
"""

import argparse
import gzip
from pathlib import Path

from mmpretrain.datasets import FashionMNIST

from tas_lora import UserError, cli
from tas_lora.atomic_files import write_atomic

FILES = [
    f'{part}-{kind}-ubyte' for part in ('train', 't10k') for kind in ('images-idx3', 'labels-idx1')
]


def main() -> None:
    """Copy or download, then read all of it once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--source', help='folder, such as /usr/share/datasets/fashion-mnist')
    parser.add_argument('--out', default='data/fashion_mnist', help='folder to write to')
    args = parser.parse_args()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    if args.source:
        for name in FILES:
            write_atomic(out / name, unzipped(Path(args.source), name))
    for split in ('train', 'test'):
        data = FashionMNIST(str(out), split, test_mode=split == 'test', download=not args.source)
        cli.say(f'{out}: {len(data):,} images, {split}')


def unzipped(folder: Path, name: str) -> bytes:
    """Content of a file that may be zipped.

    Raises:
        UserError: If it is not there.
    """
    if (folder / name).is_file():
        return (folder / name).read_bytes()
    if (folder / f'{name}.gz').is_file():
        return gzip.decompress((folder / f'{name}.gz').read_bytes())
    raise UserError(f'{folder} has neither {name} nor {name}.gz; give another --source, or none')


if __name__ == '__main__':
    cli.run(main)
