"""Image processor of one channel for transformers, loaded with ``trust_remote_code=True``."""

import numpy as np
from PIL import Image
from transformers import CLIPImageProcessor


class TasLoraGreyImageProcessor(CLIPImageProcessor):
    """Transformers' CLIP processor for grey images; converts Pillow's colour images to grey."""

    def preprocess(self, images, *args, **kwargs):
        """As in ``CLIPImageProcessor``; ``pixel_values`` are (B, 1, side, side)."""
        images = images if isinstance(images, (list, tuple)) else [images]
        return super().preprocess([_grey(image) for image in images], *args, **kwargs)


def _grey(image):
    """Values (1, height, width) of a Pillow image; anything else is returned unchanged."""
    return np.asarray(image.convert('L'))[None] if isinstance(image, Image.Image) else image
