"""Objects with an alpha channel on photographs: images, masks and the split into parts.

Everything random is a function of a seed and the image's number.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tas_lora import UserError
from tas_lora.image_formats import open_image

PARTS = ('train', 'val', 'test')
SHARES = (0.6, 0.2, 0.2)  # of objects and of photographs
_OPAQUE = 127  # pixels with higher alpha belong to the object
_LEAST = 0.1  # least opaque share of a stamp's box; glass and fireworks have less
_SIZES = (0.35, 0.9)  # range of an object's longer side, relative to the image's


@dataclass(frozen=True)
class Part:
    """Sources of the images of one part."""

    name: str
    stamps: list[Path]
    photographs: list[Path]


def split(items: Sequence, groups: Sequence[str], rng: np.random.Generator) -> list[list]:
    """Split items into three parts by ``SHARES``; items of one group stay together.

    Args:
        items: Anything.
        groups: The group of each item.
        rng: Assigns the groups to parts.

    Returns:
        One list per part in ``PARTS``.
    """
    names = sorted(set(groups))
    order = [names[i] for i in rng.permutation(len(names))]
    ends = np.rint(np.cumsum(SHARES) * len(names)).astype(int)
    place = {name: int(np.searchsorted(ends, i, side='right')) for i, name in enumerate(order)}
    pairs = list(zip(items, groups, strict=True))
    return [[item for item, group in pairs if place[group] == part] for part in range(len(PARTS))]


def kind_of(stamp: Path) -> str:
    """The first word of a stamp's name: 'spider' for spider2.png and spider_mirror.png."""
    word = re.search(r'[^\W\d_]+', stamp.stem.lower())
    return word.group() if word else stamp.stem


def cut_out(stamp: Path) -> Image.Image | None:
    """Crop a stamp to its opaque box, RGBA; None if its alpha shows no object."""
    with open_image(stamp) as picture:
        if 'A' not in picture.getbands() and 'transparency' not in picture.info:
            return None
        picture = picture.convert('RGBA')
    opaque = picture.getchannel('A').point(lambda alpha: 255 * (alpha > _OPAQUE))
    box = opaque.getbbox()
    if box is None or min(box[2] - box[0], box[3] - box[1]) < 8:
        return None
    return picture.crop(box) if np.asarray(opaque.crop(box)).mean() > 255 * _LEAST else None


def composite(
    stamp: Image.Image, photograph: Image.Image, size: int, rng: np.random.Generator
) -> tuple[Image.Image, Image.Image]:
    """Paste a stamp on a photograph.

    Args:
        stamp: RGBA, cropped to its box.
        photograph: RGB.
        size: Width and height of the image in pixels.
        rng: Draws crop, sizes, flip and position.

    Returns:
        The RGB image and its mask: 255 where the stamp is opaque, else 0.
    """
    picture = _crop(photograph, size, rng)
    longest = rng.uniform(*_SIZES) * size
    scale = longest / max(stamp.size)
    wide, high = (max(1, round(side * scale)) for side in stamp.size)
    stamp = stamp.resize((wide, high), Image.Resampling.LANCZOS)
    if rng.random() < 0.5:
        stamp = stamp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    corner = (int(rng.integers(size - wide + 1)), int(rng.integers(size - high + 1)))
    picture.paste(stamp, corner, stamp)
    mask = Image.new('L', (size, size))
    mask.paste(stamp.getchannel('A').point(lambda alpha: 255 * (alpha > _OPAQUE)), corner)
    return picture, mask


def _crop(photograph: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """Crop a random square with a side from ``size`` pixels up to the shorter side."""
    shorter = min(photograph.size)
    side = int(rng.integers(min(size, shorter), shorter + 1))
    left, top = (int(rng.integers(length - side + 1)) for length in photograph.size)
    box = (left, top, left + side, top + side)
    return photograph.resize((size, size), Image.Resampling.LANCZOS, box=box)


def write_part(part: Part, out: Path, count: int, size: int, key: tuple[int, ...]) -> None:
    """Write ``count`` images to ``out``/images and their masks to ``out``/masks.

    Image i is a function of (key, i) and of the part's sources. Stamps take turns, in a new order
    each round.
    """
    for folder in ('images', 'masks'):
        (out / folder).mkdir(parents=True)
    photographs = [open_image(path).convert('RGB') for path in part.photographs]
    for i in range(count):
        turn, place = divmod(i, len(part.stamps))
        order = np.random.default_rng((*key, 0, turn)).permutation(len(part.stamps))
        rng = np.random.default_rng((*key, 1, i))
        stamp = part.stamps[order[place]]
        photograph = photographs[rng.integers(len(photographs))]
        picture, mask = composite(cut_out(stamp), photograph, size, rng)
        name = f'{i:05d}_{stamp.stem}.png'
        picture.save(out / 'images' / name)
        mask.save(out / 'masks' / name)


def stamps_in(folder: Path, leave_out: Sequence[str]) -> list[Path]:
    """Stamps in a folder whose alpha shows an object; its direct subfolders are the classes."""
    folder = next(folder.rglob('tuxpaint/stamps'), folder)  # of an unpacked package
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    unknown = [name for name in leave_out if name not in classes]
    if unknown:
        raise UserError(f'--leave-out {unknown[0]}: {folder} has the classes {", ".join(classes)}')
    stamps = [path for path in sorted(folder.rglob('*.png')) if path.parent != folder]
    stamps = [path for path in stamps if path.relative_to(folder).parts[0] not in leave_out]
    shown = [path for path in stamps if cut_out(path) is not None]
    if len(shown) < len(PARTS):
        raise UserError(f'{folder} has {len(shown)} stamps with an alpha channel; three are needed')
    return shown


def parts_of(stamps: Sequence[Path], pictures: Sequence[Sequence[Path]], seed: int) -> list[Part]:
    """Split stamps and photographs into disjoint train, val and test.

    Args:
        stamps: All stamps; those of one kind stay together.
        pictures: Photographs by kind, see :func:`split_photographs`.
        seed: Seed of the split.

    Raises:
        UserError: If a part would be empty.
    """
    objects = split(stamps, list(map(kind_of, stamps)), np.random.default_rng((seed, 0)))
    parts = list(map(Part, PARTS, objects, split_photographs(pictures, seed)))
    if not all(part.stamps and part.photographs for part in parts):
        raise UserError('there are too few kinds of stamps for three parts; give more of them')
    return parts


def split_photographs(pictures: Sequence[Sequence[Path]], seed: int) -> list[list[Path]]:
    """Photographs of each part in ``PARTS``; every part gets its share of each kind."""
    rng = np.random.default_rng((seed, 1))
    by_kind = [split(kind, [path.name for path in kind], rng) for kind in pictures]
    return [sum(shares, []) for shares in zip(*by_kind, strict=True)]


def made_of(parts: Sequence[Part]) -> dict[str, dict[str, list[str]]]:
    """Names of stamps and photographs by part, for the record."""
    return {
        part.name: dict(
            stamps=[f'{path.parent.name}/{path.name}' for path in part.stamps],
            photographs=[path.name for path in part.photographs],
        )
        for part in parts
    }
