"""Write images of emoji on photographs, with their masks, split by emoji.

The emoji are those of projects/from_pretrained, as Google and Twitter draw them, with an alpha
channel, which is the object's mask; `third` has the test emoji as Apple draws them. They belong to
these vendors. The photographs come with scikit-image (BSD-3).
"""

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path

import project_path
from nas_lora.images.folders import written_whole
from nas_lora.images.made_of import write_record
from nas_lora.images.photographs import photographs
from nas_lora.images.stamps import PARTS, Part, cut_out, made_of, split_photographs, write_part

from tas_lora import cli
from tas_lora.checks import natural, positive
from tas_lora.provenance import sha256

project_path.add(project_path.PROJECT.with_name('from_pretrained'))
from from_pretrained.downloads import emoji_archives  # noqa: E402
from from_pretrained.emoji import write_folders  # noqa: E402

THIRD = 'third'


def main():
    """Download, split, composite and record the sources."""
    args = _parse_args()
    for name in ('size', *PARTS, THIRD):
        positive(vars(args)[name], f'--{name}', int)
    natural(args.seed, '--seed')
    with written_whole(args.out) as out, tempfile.TemporaryDirectory() as temporary:
        args.archives.mkdir(parents=True, exist_ok=True)
        archives = emoji_archives(args.archives)
        write_folders(archives, Path(temporary), args.seed, is_white=False)
        emoji, left_out = drawings(Path(temporary))
        parts = on_photographs(emoji, args.seed)
        for i, part in enumerate(parts):
            write_part(part, out / part.name, vars(args)[part.name], args.size, (args.seed, i))
        facts = dict(
            seed=args.seed,
            size=args.size,
            sources=[
                'scikit-image',
                *(f'{p.name}, SHA-256 {sha256(p)}' for p in archives.values()),
            ],
            split='no emoji and no photograph is in two of train, val and test; third has the '
            'emoji and photographs of test, by another hand',
            left_out=left_out,
        )
        write_record(out, args.out, facts, made_of(parts))


def drawings(folder: Path) -> tuple[dict[str, list[Path]], dict[str, list[str]]]:
    """Drawings by part, in ``folder``/part/class, and what is left out, by reason.

    - no object: the alpha channel shows none, see :func:`nas_lora.images.stamps.cut_out`.
    - drawn alike: train or val has an emoji, of which a hand's drawing equals that of another emoji
      in a later part, pixel by pixel: the flags of Norway and Bouvet Island. Both hands' drawings
      of it are left out there.
    """
    kept, seen = {}, set()
    left_out = {'no object': [], 'drawn alike': []}
    for part in (THIRD, *reversed(PARTS)):
        shown = {path: cut_out(path) for path in sorted((folder / part).rglob('*.png'))}
        pixels = {
            path: (picture.size, picture.tobytes()) for path, picture in shown.items() if picture
        }
        repeated = {_code(path) for path, drawn in pixels.items() if drawn in seen}
        seen |= set(pixels.values())
        kept[part] = [path for path in pixels if _code(path) not in repeated]
        left_out['no object'] += [_name(path) for path in shown if path not in pixels]
        left_out['drawn alike'] += [_name(path) for path in pixels if path not in kept[part]]
    return kept, left_out


def _code(drawing: Path) -> str:
    """Code points of an emoji, whose files are HAND_CODE.png."""
    return drawing.stem.split('_', 1)[1]


def _name(drawing: Path) -> str:
    return '/'.join(drawing.parts[-3:])


def on_photographs(emoji: Mapping[str, list[Path]], seed: int) -> list[Part]:
    """The parts: their emoji and photographs. ``third`` has the photographs of test."""
    backgrounds = split_photographs(photographs(), seed)
    pairs = zip((*PARTS, THIRD), (*backgrounds, backgrounds[-1]), strict=True)
    return [Part(name, emoji[name], pictures) for name, pictures in pairs]


def _parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add('--out', type=Path, default=Path('data/emoji_masks'), help='folder to write to')
    add(
        '--archives',
        type=Path,
        default=Path('data/downloads'),
        help='folder of the npm archives emoji-datasource-*; what is not there is fetched',
    )
    add('--size', type=int, default=112, help='pixels')
    for part, count in zip((*PARTS, THIRD), (96, 48, 96, 96), strict=True):
        add(f'--{part}', type=int, default=count, help=f'pictures in {part}')
    add('--seed', type=int, default=0)
    return parser.parse_args()


if __name__ == '__main__':
    cli.run(main)
