"""Image processor for transformers, loaded with ``trust_remote_code=True``."""

from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.image_transforms import to_pil_image

from ..export.image_preparation import ImagePreparation


class TasLoraImageProcessor(BaseImageProcessor):
    """Prepares images exactly as the network's test pipeline did.

    Args:
        preparation: Arguments of ``ImagePreparation``.
        **kwargs: As in ``BaseImageProcessor``.
    """

    model_input_names = ['pixel_values']

    def __init__(self, preparation: dict | None = None, **kwargs):
        super().__init__(**kwargs)
        self.preparation = preparation

    def preprocess(self, images, return_tensors=None, **kwargs) -> BatchFeature:
        """``pixel_values`` (B, channels, side, side) of an image or a list of them."""
        prepare = ImagePreparation(**self.preparation)
        images = images if isinstance(images, (list, tuple)) else [images]
        pictures = [x if isinstance(x, Image.Image) else to_pil_image(x) for x in images]
        values = [prepare(picture).numpy() for picture in pictures]
        return BatchFeature(dict(pixel_values=values), tensor_type=return_tensors)
