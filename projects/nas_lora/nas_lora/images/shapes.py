"""Drawn ellipses and polygons: training images if no others are available."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


def draw_shape(size: int, rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """Draw a shape of one colour on a blurred random background, with noise on both.

    Args:
        size: Width and height in pixels.
        rng: Source of all randomness.

    Returns:
        The RGB image and its mask, 255 inside the shape.
    """
    mask = Image.new('L', (size, size))
    pen = ImageDraw.Draw(mask)
    center, radius = rng.uniform(0.3, 0.7, 2) * size, rng.uniform(0.15, 0.4, 2) * size
    if rng.random() < 0.5:
        pen.ellipse([*(center - radius), *(center + radius)], fill=255)
    else:
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(4, 9)))
        corners = center + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        pen.polygon([tuple(corner) for corner in corners], fill=255)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
    behind = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=float)
    inside = np.asarray(mask)[..., None] > 0
    picture = np.where(inside, rng.uniform(0, 256, 3), behind) + rng.normal(0, 12, (size, size, 3))
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8)), mask


def write_shapes(out: Path, counts: dict[str, int], size: int = 64, seed: int = 0) -> None:
    """Write images in the layout of ``prepare_stamps.py``: ``out``/part/images and masks.

    Args:
        out: Folder to write to.
        counts: Number of images by part.
        size: Width and height in pixels.
        seed: An image is a function of seed, part and number.
    """
    for i, (part, count) in enumerate(counts.items()):
        for folder in ('images', 'masks'):
            (out / part / folder).mkdir(parents=True, exist_ok=True)
        for j in range(count):
            picture, mask = draw_shape(size, np.random.default_rng((seed, i, j)))
            picture.save(out / part / 'images' / f'{j:05d}.png')
            mask.save(out / part / 'masks' / f'{j:05d}.png')
