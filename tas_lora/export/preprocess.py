"""How images are fed to an exported network, told to libraries that have ways of their own."""

import json
from math import floor, nextafter

from safetensors.torch import load_file
from torch import Tensor

from ..errors import UserError
from .source import Source

_WHAT = ('mean', 'std', 'channel_order', 'crop_ratio', 'interpolation')


def metadata(source: Source) -> dict[str, str]:
    """What runs the network alone lacks: ``preprocess``, classes, digest. Lists are JSON."""
    description = source.description
    known = {name: description['preprocess'].get(name) for name in _WHAT}
    known |= {name: description.get(name) for name in ('classes', 'weights_sha256')}
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in known.items()
        if value is not None
    }


def normalisation(source: Source) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel in 0..255 units; the export may give none, or one."""
    preprocess, channels = source.description['preprocess'], source.network['in_channels']
    mean, std = preprocess.get('mean') or [0.0], preprocess.get('std') or [1.0]
    return mean * (channels // len(mean)), std * (channels // len(std))


def resized_edge(source: Source) -> int | None:
    """Short edge that images are resized to before the crop; None if they are squeezed whole."""
    ratio = source.description['preprocess'].get('crop_ratio', 1.0)
    return None if ratio is None else round(source.network['img_size'] / ratio)


def crop_share(source: Source) -> float:
    """Side over :func:`resized_edge`, of which timm takes the floor of side / share as edge."""
    side, edge = source.network['img_size'], resized_edge(source) or source.network['img_size']
    share = side / edge
    return share if floor(side / share) == edge else nextafter(share, 0)


def interpolation(source: Source) -> str:
    """Pillow's method."""
    return source.description['preprocess'].get('interpolation', 'bicubic')


def in_rgb(source: Source) -> tuple[dict[str, Tensor], list[float], list[float], bool]:
    """The network for libraries that read images as RGB and scale them to 0..1.

    Returns:
        Weights; mean and deviation for values 0..1; and whether all were trained on BGR, and are
        given for channels the other way round.

    Raises:
        UserError: If the order of three channels is not known.
    """
    weights = load_file(source.folder / 'weights.safetensors')
    mean, std = ([x / 255 for x in values] for values in normalisation(source))
    order = source.description['preprocess'].get('channel_order')
    if source.network['in_channels'] != 3 or order == 'RGB':
        return weights, mean, std, False
    if order != 'BGR':
        raise UserError(
            f'the order of channels is {order!r}, and this format is fed RGB; name the loading of '
            "images in the test pipeline, as in MMPretrain's LoadImageFromFile"
        )
    weights['patch_embed.weight'] = weights['patch_embed.weight'].flip(1).contiguous()
    return weights, mean[::-1], std[::-1], True
