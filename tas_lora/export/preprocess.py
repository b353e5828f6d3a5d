"""The preprocessing of an exported network, in the terms of other libraries."""

import json
from dataclasses import replace
from math import floor, nextafter

from safetensors.torch import load_file
from torch import Tensor

from ..errors import UserError
from ..models.preparation import bare_name
from .data import innermost
from .examples import LEVELS
from .image_preparation import SHAPE
from .source import Source

_WHAT = ('mean', 'std', 'channel_order', 'color', *SHAPE, 'unknown_steps')


def metadata(source: Source) -> dict[str, str]:
    """Preprocessing, class names and digest, for files without them. Lists become JSON."""
    description = source.description
    known = {name: description['preprocess'].get(name) for name in _WHAT}
    known |= {name: description.get(name) for name in ('classes', 'weights_sha256')}
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in known.items()
        if value is not None
    }


def compare(source: Source) -> tuple[Source, str]:
    """Compare ``preprocess`` with the test pipeline on the examples of a source.

    Returns:
        The source, and a line of what was found. If the two differ, the pipeline becomes one of
        ``unknown_steps``, so that no format promises to prepare images.
    """
    described, examples = source.description['preprocess'], source.examples
    if steps := described.get('unknown_steps'):
        return source, (
            f'architecture.json has no terms for {", ".join(steps)} of the test pipeline: '
            'tools/predict.py will refuse images, and formats that prepare images cannot be written'
        )
    level, file = examples.largest_difference(examples.prepared_by(source.description))
    found = (
        f'prepared as architecture.json says, {file} differs from what the test pipeline gives by '
        f'{level:.2g} of 255 levels on average, the most of {len(examples.files)} images'
    )
    if level <= LEVELS:
        return source, f'{found} (within {LEVELS:g})'
    names = [bare_name(step) for step in innermost(source.data['test_dataloader'])['pipeline']]
    changed = described | dict(unknown_steps=[', '.join(names)])
    description = source.description | dict(preprocess=changed)
    text = json.dumps(description, indent=2) + '\n'
    (source.folder / 'architecture.json').write_text(text, 'utf-8')
    return replace(source, description=description), f'{found} (ABOVE {LEVELS:g})'


def normalisation(source: Source) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel, 0..255; the export may have none, or one for all."""
    preprocess, channels = source.description['preprocess'], source.network['in_channels']
    mean, std = preprocess.get('mean') or [0.0], preprocess.get('std') or [1.0]
    return mean * (channels // len(mean)), std * (channels // len(std))


def resized_edge(source: Source) -> int:
    """Length of the short edge before the crop, or of both if the image is squashed."""
    return round(
        source.network['img_size'] / (source.description['preprocess'].get('crop_ratio', 1.0) or 1)
    )


def is_squashed(source: Source) -> bool:
    """Whether the whole image becomes a square, whatever its shape."""
    preprocess = source.description['preprocess']
    return preprocess.get('squash', False) or preprocess.get('crop_ratio', 1.0) is None


def crop_share(source: Source) -> float:
    """Side / :func:`resized_edge`, such that timm's floor(side / share) is exactly that edge."""
    side, edge = source.network['img_size'], resized_edge(source)
    share = side / edge
    return share if floor(side / share) == edge else nextafter(share, 0)


def interpolation(source: Source) -> str:
    """Name of Pillow's resampling method."""
    return source.description['preprocess'].get('interpolation', 'bicubic')


def check_known(source: Source) -> None:
    """Raise :class:`UserError` if ``preprocess`` has no terms for a step of the test pipeline."""
    if steps := source.description['preprocess'].get('unknown_steps'):
        raise UserError(
            f'the test pipeline prepares images by {", ".join(steps)}, which this format cannot '
            'say; change the step, or leave the format out'
        )


def beyond_cropping(source: Source) -> list[str]:
    """What resizing to the short edge or a square by Pillow, and a central crop, cannot say."""
    preprocess = source.description['preprocess']
    read_as_grey = preprocess.get('color') == 'grey' and source.network['in_channels'] == 3
    beyond = {
        'reading colour images as grey': read_as_grey,
        "OpenCV's resizing": preprocess.get('backend') == 'cv2',
        'padding at the right and bottom': preprocess.get('pad_value') is not None,
    }
    return [what for what, is_needed in beyond.items() if is_needed]


def in_rgb(source: Source) -> tuple[dict[str, Tensor], list[float], list[float], bool]:
    """Convert the network for libraries that read images as RGB and scale them to 0..1.

    Returns:
        Weights; mean and standard deviation for values 0..1; and whether the network was trained
        on BGR, so that the channels of all three were reversed.

    Raises:
        UserError: If there are three channels of unknown order.
    """
    weights = load_file(source.folder / 'weights.safetensors')
    mean, std = ([x / 255 for x in values] for values in normalisation(source))
    order = source.description['preprocess'].get('channel_order')
    if source.network['in_channels'] != 3 or order == 'RGB':
        return weights, mean, std, False
    if order != 'BGR':
        raise UserError(
            f'the channel order is {order!r}, but this format needs RGB; add the step that loads '
            "the images, such as MMPretrain's LoadImageFromFile, to the test pipeline"
        )
    weights['patch_embed.weight'] = weights['patch_embed.weight'].flip(1).contiguous()
    return weights, mean[::-1], std[::-1], True
