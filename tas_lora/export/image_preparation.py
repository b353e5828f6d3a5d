"""Images as a network saw them in its test. Needs only numpy, Pillow and torch."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

SHAPE = ('crop_ratio', 'squash', 'pad_value', 'interpolation', 'backend')


class ImagePreparation:
    """Turns a Pillow image into the input of an exported network.

    Args:
        preprocess: The field of ``architecture.json``.
        channels: Channels of the network's images, 1 or 3.
        side: Their side in pixels.

    Raises:
        ValueError: If the test had steps that ``preprocess`` has no terms for.
    """

    def __init__(self, preprocess: dict, channels: int, side: int):
        if steps := preprocess.get('unknown_steps'):
            raise ValueError(
                f'the test pipeline prepares images by {", ".join(steps)}, which the export has '
                'no terms for; prepare images by that pipeline'
            )
        self.channels, self.side = channels, side
        self.mode = 'RGB' if channels == 3 and preprocess.get('color') != 'grey' else 'L'
        self.is_reversed = preprocess.get('channel_order') == 'BGR'
        self.shape = {name: preprocess[name] for name in SHAPE if name in preprocess}
        values = preprocess.get('mean') or [0.0], preprocess.get('std') or [1.0]
        self.mean, self.std = (torch.tensor(value).view(-1, 1, 1) for value in values)

    def __call__(self, image: Image.Image) -> Tensor:
        """Normalised image, (channels, side, side)."""
        return self.normalised(square(image.convert(self.mode), self.side, **self.shape))

    def normalised(self, pixels: np.ndarray) -> Tensor:
        """Of pixels (side, side) or (side, side, 3), values 0..255, RGB: (channels, side, side)."""
        values = torch.from_numpy(np.array(pixels, np.float32)).view(self.side, self.side, -1)
        values = values.flip(2) if self.is_reversed else values
        values = (values.permute(2, 0, 1) - self.mean) / self.std
        return values.expand(self.channels, -1, -1)


def square(
    image: Image.Image,
    side: int,
    crop_ratio: float | None = 1.0,
    interpolation: str = 'bicubic',
    backend: str = 'pillow',
    squash: bool = False,
    pad_value: int | None = None,
) -> np.ndarray:
    """Resize an image and take the square that the network sees.

    Args:
        image: Of mode 'L' or 'RGB'.
        side: Side of the square in pixels.
        crop_ratio: The short edge is resized to ``side / crop_ratio``, and the centre is cropped,
            as by MMPretrain's ``ResizeEdge`` and ``CenterCrop``. None resizes the whole image to
            the square, as ``Resize`` does.
        interpolation: 'nearest', 'bilinear' or 'bicubic'; with Pillow also 'lanczos', 'box' or
            'hamming'.
        backend: 'pillow', or 'cv2' for OpenCV's methods, which skip pixels when they shrink.
        squash: Resize the whole image to a square of ``side / crop_ratio`` before the crop.
        pad_value: Resize the long edge to ``side`` instead, and fill what is left at the right
            or bottom with this value, as ``Resize`` with ``keep_ratio`` and ``Pad`` do.

    Returns:
        (side, side) or (side, side, 3), values 0..255.
    """
    if pad_value is not None:
        return _padded(image, side, interpolation, backend, pad_value)
    edge, short = round(side / (crop_ratio or 1)), min(image.size)
    is_squashed = squash or crop_ratio is None
    size = tuple(edge if is_squashed else edge * length // short for length in image.size)
    image = _resize(image, size, interpolation, backend)
    left, top = (round((length - side) / 2) for length in size)
    return np.asarray(image.crop((left, top, left + side, top + side)))


def _padded(
    image: Image.Image, side: int, interpolation: str, backend: str, value: int
) -> np.ndarray:
    factor = side / max(image.size)
    size = tuple(max(1, int(length * factor + 0.5)) for length in image.size)
    filled = Image.new(image.mode, (side, side), (value,) * len(image.getbands()))
    filled.paste(_resize(image, size, interpolation, backend))
    return np.asarray(filled)


def _resize(image: Image.Image, size: tuple, interpolation: str, backend: str) -> Image.Image:
    if backend == 'pillow':
        return image.resize(size, Image.Resampling[interpolation.upper()])
    pixels = torch.from_numpy(np.array(image, np.float32))
    pixels = pixels.view(image.height, image.width, -1).permute(2, 0, 1)[None]
    corners = None if interpolation == 'nearest' else False
    # Without antialiasing, torch computes what OpenCV does, up to its rounding.
    pixels = F.interpolate(pixels, size[::-1], mode=interpolation, align_corners=corners)
    pixels = pixels[0].round().clamp(0, 255).permute(1, 2, 0).squeeze(2)
    return Image.fromarray(pixels.numpy().astype(np.uint8))
