"""What a supernet refuses: images of another size, patches of a size it does not have."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from ...errors import UserError


def check_images(images: Tensor, spec: Mapping[str, int]) -> None:
    """Raise :class:`UserError` unless images are as ``img_size`` and ``in_channels`` say."""
    expected = (spec['in_channels'], spec['img_size'], spec['img_size'])
    if images.shape[1:] != expected:
        raise UserError(
            f'the backbone takes images of shape {expected}, got {tuple(images.shape[1:])}; '
            'change img_size and in_channels of the backbone, or the data pipeline'
        )


def check_patch_size(size: int | None, allowed: Sequence[int], what: str) -> None:
    """Raise :class:`UserError` unless the patch size of ``what`` is allowed, or left open."""
    if size not in (None, *allowed):
        raise UserError(
            f'{what} does not fit: patch_size is {size}, the supernet has {list(allowed)}; choose '
            'one of them, or list it in model.backbone.patch_size'
        )
