"""Pictures of emoji as class folders, split by emoji.

Several vendors ("hands") draw the same emoji. Those of two hands train, validate and test; a third
hand's drawings of the test emoji are a second test. All drawings of an emoji are in one split, and
so are emoji that differ only in a person's gender or direction, since they look nearly alike.
"""

import io
import json
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tas_lora import UserError

HANDS = ('google', 'twitter')
THIRD = 'apple'  # draws every emoji; Facebook's set has gaps
SHARES = {'test': 0.25, 'val': 0.15}  # of the emoji of a class, at least; the rest trains
MIN_DESIGNS = 12  # a class needs that many
_VARIANTS = '-200D-(2640|2642|27A1)-FE0F'  # a woman, a man, facing right
_MAN_OR_WOMAN = '^1F46[89]'


def design(emoji: Mapping) -> str:
    """What an emoji shows, whoever the person is: its code points without gender and direction."""
    return re.sub(_MAN_OR_WOMAN, '1F9D1', re.sub(_VARIANTS, '', emoji['unified']))


def split_emoji(
    emoji: Iterable[Mapping], seed: int = 0, min_designs: int = MIN_DESIGNS
) -> dict[str, dict[str, list[Mapping]]]:
    """Emoji by split (train, val, test) and class, the latter being their subcategory.

    Args:
        emoji: Entries of ``emoji.json``. Those that one of the hands lacks are left out.
        seed: Same seed, same split, whatever the order of the entries.
        min_designs: Subcategories with fewer :func:`design` values are left out.
    """
    hands = [f'has_img_{hand}' for hand in (*HANDS, THIRD)]
    classes = defaultdict(lambda: defaultdict(list))
    for one in sorted(emoji, key=lambda one: one['unified']):
        if all(one[hand] for hand in hands):
            classes[class_name(one)][design(one)].append(one)
    splits = {name: {} for name in ('train', 'val', 'test')}
    for place, (name, designs) in enumerate(sorted(classes.items())):
        if len(designs) >= min_designs:
            order = np.random.default_rng((seed, place)).permutation(sorted(designs))
            for split, chosen in _dealt([designs[key] for key in order]).items():
                splits[split][name] = chosen
    return splits


def class_name(emoji: Mapping) -> str:
    """Subcategory as the name of a folder: ``'sky & weather'`` is ``'sky-weather'``."""
    return re.sub('[^a-z0-9]+', '-', emoji['subcategory'].lower())


def _dealt(designs: Sequence[Sequence[Mapping]]) -> dict[str, list[Mapping]]:
    """Designs to splits in turn: a split is full at its share of the emoji."""
    total = sum(map(len, designs))
    dealt = {'test': [], 'val': [], 'train': []}
    for members in designs:
        open_splits = (s for s, share in SHARES.items() if len(dealt[s]) < share * total)
        dealt[next(open_splits, 'train')] += members
    return dealt


def write_folders(
    archives: Mapping[str, Path], out: Path, seed: int = 0, is_white: bool = True
) -> Counter:
    """Write ``out/SPLIT/CLASS/HAND_CODE.png``: 64 pixels, RGB, on white.

    Args:
        archives: npm archive of each hand.
        out: Folder to write to, which must be empty or absent.
        seed: Seed of :func:`split_emoji`.
        is_white: Else pictures are RGBA, transparent outside of what is drawn.

    Returns:
        Number of pictures by split.

    Raises:
        UserError: If an archive lacks a picture.
    """
    with tarfile.open(archives[HANDS[0]]) as archive:
        splits = split_emoji(json.load(archive.extractfile('package/emoji.json')), seed)
    counts = Counter()
    for hand, path in archives.items():
        wanted = {
            f'package/img/{hand}/64/{one["image"]}': out / (split if hand in HANDS else 'third') / c
            for split, classes in splits.items()
            for c, members in classes.items()
            for one in members
            if hand in HANDS or split == 'test'
        }
        with tarfile.open(path) as archive:
            for member in archive:
                if folder := wanted.pop(member.name, None):
                    folder.mkdir(parents=True, exist_ok=True)
                    png = archive.extractfile(member).read()
                    image = on_white(png) if is_white else open_rgba(png)
                    image.save(folder / f'{hand}_{Path(member.name).name}')
                    counts[folder.parent.name] += 1
        if wanted:
            raise UserError(f'{path} lacks {len(wanted)} pictures, such as {min(wanted)}')
    return counts


def on_white(png: bytes) -> Image.Image:
    """A picture without its transparency, RGB."""
    image = open_rgba(png)
    return Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image).convert('RGB')


def open_rgba(png: bytes) -> Image.Image:
    """A picture with its transparency."""
    return Image.open(io.BytesIO(png)).convert('RGBA')
