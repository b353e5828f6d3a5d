"""The structure loss: pixels near an object's border count more."""

import torch.nn.functional as F
from torch import Tensor, nn

from tas_lora import UserError
from tas_lora.checks import positive

from ..registry import MODELS


def border_weight(masks: Tensor, kernel_size: int = 31) -> Tensor:
    """1 + 5 |mean of the window around a pixel - the pixel|, from 1 inside to 6 at thin borders.

    The outside of the image counts as empty, so an object cut off by the edge has a border there.

    Args:
        masks: (B, 1, H, W), from 0 to 1.
        kernel_size: Width of the window in pixels, odd.
    """
    mean = F.avg_pool2d(masks, kernel_size, stride=1, padding=kernel_size // 2)
    return 1 + 5 * (mean - masks).abs()


def structure_loss(logits: Tensor, masks: Tensor, kernel_size: int = 31) -> Tensor:
    """Weighted binary cross-entropy plus weighted IoU loss per image, averaged over images.

    With w of :func:`border_weight`, p the sigmoid of the logits and m the mask (F3Net, AAAI 2020,
    equations 5 to 8; Conv-LoRA, arXiv 2401.17868, trains SAM with it):

        sum w BCE(p, m) / sum w  +  1 - (sum w p m + 1) / (sum w (p + m - p m) + 1)

    Args:
        logits: (B, 1, H, W).
        masks: As ``logits``, from 0 to 1.
        kernel_size: Width of the window in pixels, odd.

    Returns:
        A scalar.
    """
    weight = border_weight(masks, kernel_size)
    pixels = (1, 2, 3)
    bce = F.binary_cross_entropy_with_logits(logits, masks, reduction='none')
    weighted_bce = (weight * bce).sum(pixels) / weight.sum(pixels)
    probability = logits.sigmoid()
    both = (weight * probability * masks).sum(pixels)
    either = (weight * (probability + masks)).sum(pixels) - both
    return (weighted_bce + 1 - (both + 1) / (either + 1)).mean()


@MODELS.register_module()
class StructureLoss(nn.Module):
    """:func:`structure_loss` as a module for configs.

    Args:
        kernel_size: Width of the window in pixels, odd. 31 suits images of about 350 pixels and
            more; it covers half of a 64-pixel image.

    Raises:
        UserError: If it is not an odd positive integer.
    """

    def __init__(self, kernel_size: int = 31):
        super().__init__()
        self.kernel_size = positive(kernel_size, 'StructureLoss.kernel_size', int)
        if kernel_size % 2 == 0:
            raise UserError(f'StructureLoss.kernel_size must be odd, got {kernel_size}')

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Loss of ``logits`` (B, 1, H, W) against ``masks`` of that shape; a scalar."""
        return structure_loss(logits, masks, self.kernel_size)
