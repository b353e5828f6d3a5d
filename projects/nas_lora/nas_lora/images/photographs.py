"""Photographs that come inside scikit-image (BSD-3); nothing is downloaded."""

from pathlib import Path

from tas_lora import UserError

# By kind: scenes with one main object, and textures. The motorcycle has two views; one is used.
SCENES = (
    'astronaut.png',
    'camera.png',
    'chelsea.png',
    'clock_motion.png',
    'coffee.png',
    'motorcycle_left.png',
    'rocket.jpg',
)
TEXTURES = (
    'brick.png',
    'coins.png',
    'grass.png',
    'gravel.png',
    'hubble_deep_field.jpg',
    'ihc.png',
    'moon.png',
    'retina.jpg',
)


def photographs() -> list[list[Path]]:
    """Paths of the photographs, by kind."""
    try:
        import skimage
    except ImportError as error:
        raise UserError('scikit-image is missing: pip install "tas-lora[nas_lora]"') from error
    folder = Path(skimage.__file__).parent / 'data'
    return [[folder / name for name in names] for names in (SCENES, TEXTURES)]
