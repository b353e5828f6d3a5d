"""Icons of a desktop in class folders, as pictures of one's own for the guide.

apt-get download oxygen-icon-theme && dpkg-deb -x oxygen-icon-theme*.deb data/oxygen
python projects/from_pretrained/icons.py data/oxygen data/icons

Classes are the theme's folders with 30 icons or more. Every fourth icon, by name, is for the test.
"""

import argparse
from io import BytesIO
from pathlib import Path

from PIL import Image

from tas_lora import UserError, cli
from tas_lora.atomic_files import write_atomic

LEAST = 30


def main() -> None:
    """Read the theme's icons of 64 pixels, on white, and write train/ and test/."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('theme', help='where the package was unpacked')
    parser.add_argument('out', help='folder to write')
    args = parser.parse_args()
    folders = sorted(Path(args.theme).rglob('base/64x64/*'))
    if not folders:
        raise UserError(f'{args.theme} has no folder base/64x64; unpack oxygen-icon-theme there')
    for folder in folders:
        files = sorted(file for file in folder.glob('*.png') if not file.is_symlink())
        for i, file in enumerate(files if len(files) >= LEAST else []):
            write(file, Path(args.out, 'train' if i % 4 else 'test', folder.name))
    count = len(list(Path(args.out).rglob('*.png')))
    cli.say(f'{count} icons in {args.out}')


def write(file: Path, folder: Path) -> None:
    """Write an icon with white in the place of transparency."""
    folder.mkdir(parents=True, exist_ok=True)
    icon = Image.open(file).convert('RGBA')
    white = Image.new('RGBA', icon.size, 'white')
    content = BytesIO()
    Image.alpha_composite(white, icon).convert('RGB').save(content, format='png')
    write_atomic(folder / file.name, content.getvalue())


if __name__ == '__main__':
    cli.run(main)
