"""Masks in a pipeline of MMCV's transforms, which resize, crop and flip ``gt_seg_map``."""

import mmcv
import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.fileio import get
from mmpretrain.datasets import PackInputs

from tas_lora import UserError
from tas_lora.checks import natural

from ..registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadMask(BaseTransform):
    """Read ``seg_map_path`` into ``gt_seg_map`` (H, W), uint8: 1 inside objects.

    Args:
        threshold: Pixels above it belong to an object: 127 for masks of 0 and 255, 0 for masks of
            0 and 1.

    Raises:
        UserError: If ``threshold`` is not an integer from 0 to 254. Also, with the file's name, if
            a mask is not an image, differs in size from its image, or has values above 0 but none
            above ``threshold``.
    """

    def __init__(self, threshold: int = 127):
        self.threshold = natural(threshold, 'LoadMask.threshold', 254)

    def transform(self, results: dict) -> dict:
        """Read the mask; place it after ``LoadImageFromFile`` and before any resizing."""
        path = results['seg_map_path']
        try:
            grey = mmcv.imfrombytes(get(path), flag='grayscale')
        except Exception as error:  # decoders raise any exception
            raise UserError(f'mask {path} cannot be read: {error}') from error
        if grey is None:
            raise UserError(f'mask {path} is not an image; repair it, or remove it and its image')
        if grey.shape != tuple(results['img_shape']):
            raise UserError(
                f'mask {path} is {grey.shape}, its image {tuple(results["img_shape"])}; '
                'a mask has the size (H, W) of its image'
            )
        if 0 < grey.max() <= self.threshold:
            raise UserError(
                f'mask {path} has no value above LoadMask.threshold {self.threshold}, the largest '
                f'is {grey.max()}; lower the threshold (0 for masks of 0 and 1)'
            )
        results['gt_seg_map'] = (grey > self.threshold).astype(np.uint8)
        return results


@TRANSFORMS.register_module()
class PackMask(PackInputs):
    """MMPretrain's ``PackInputs``, with ``gt_seg_map`` as the sample's ``mask`` (H, W)."""

    def transform(self, results: dict) -> dict:
        """Pack image and mask, at the end of a pipeline."""
        mask = np.ascontiguousarray(results['gt_seg_map'])  # a flip returns a view
        return super().transform(results | dict(mask=mask))
