"""The preprocessing of an exported network, in the terms of other libraries."""

import json
from math import floor, nextafter

from safetensors.torch import load_file
from torch import Tensor

from ..errors import UserError
from .source import Source

_WHAT = ('mean', 'std', 'channel_order', 'crop_ratio', 'interpolation')


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


def normalisation(source: Source) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel, 0..255; the export may have none, or one for all."""
    preprocess, channels = source.description['preprocess'], source.network['in_channels']
    mean, std = preprocess.get('mean') or [0.0], preprocess.get('std') or [1.0]
    return mean * (channels // len(mean)), std * (channels // len(std))


def resized_edge(source: Source) -> int | None:
    """Length of the short edge before the crop; None if the whole image becomes the square."""
    ratio = source.description['preprocess'].get('crop_ratio', 1.0)
    return None if ratio is None else round(source.network['img_size'] / ratio)


def crop_share(source: Source) -> float:
    """Side / :func:`resized_edge`, such that timm's floor(side / share) is exactly that edge."""
    side, edge = source.network['img_size'], resized_edge(source) or source.network['img_size']
    share = side / edge
    return share if floor(side / share) == edge else nextafter(share, 0)


def interpolation(source: Source) -> str:
    """Name of Pillow's resampling method."""
    return source.description['preprocess'].get('interpolation', 'bicubic')


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
