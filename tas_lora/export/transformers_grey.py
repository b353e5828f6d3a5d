"""Images of one channel for Hugging Face transformers, loaded with ``trust_remote_code=True``."""

import numpy as np
from PIL import Image
from transformers import CLIPImageProcessor


class TasLoraGreyImageProcessor(CLIPImageProcessor):
    """Transformers' processor of CLIP for grey images; Pillow's of colour become grey first."""

    def preprocess(self, images, *args, **kwargs):
        """As in ``CLIPImageProcessor``: ``pixel_values`` (B, 1, side, side)."""
        images = images if isinstance(images, (list, tuple)) else [images]
        return super().preprocess([_grey(image) for image in images], *args, **kwargs)


def _grey(image):
    """Values (1, height, width) of a Pillow image; anything else as it is."""
    return np.asarray(image.convert('L'))[None] if isinstance(image, Image.Image) else image
