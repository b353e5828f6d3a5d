"""What an elastic backbone takes and gives: its images, the blocks to output, and their form."""

from collections.abc import Mapping, Sequence
from numbers import Integral

import torch
from torch import Tensor

from ...errors import UserError

OUT_TYPES = ('avg_featmap', 'cls_token', 'cls_avg', 'featmap')


def output_blocks(indices: int | Sequence[int], depth: int) -> tuple[int, ...]:
    """Return block numbers from 0 for indices that may count from the end.

    Args:
        indices: One or several, each from ``-depth`` to ``depth - 1``.
        depth: Number of blocks.

    Raises:
        UserError: If they are out of range, or their blocks do not rise.
    """
    several = isinstance(indices, Sequence) and not isinstance(indices, str)
    given = tuple(indices) if several else (indices,)
    if not given or not all(_is_between(index, -depth, depth - 1) for index in given):
        raise UserError(
            f'must be integers from {-depth} to {depth - 1}, as arch has {depth} blocks, got '
            f'{indices!r}',
            'out_indices',
        )
    blocks = tuple(int(index) % depth for index in given)
    if list(blocks) != sorted(set(blocks)):
        raise UserError(
            f'must rise, each block once, got {indices!r}, which are blocks {list(blocks)}',
            'out_indices',
        )
    return blocks


def checked_order(order: Sequence[int] | None, depth: int) -> tuple[int, ...]:
    """Return blocks by worth, by default as they stand; each of ``depth`` blocks must be in it."""
    if order is None:
        return tuple(range(depth))
    several = isinstance(order, Sequence) and not isinstance(order, str)
    whole = several and all(_is_between(block, 0, depth - 1) for block in order)
    if not whole or len(order) != depth or len(set(order)) != depth:
        raise UserError(
            f'must hold each block from 0 to {depth - 1} once, the best first, got {order!r}',
            'block_order',
        )
    return tuple(map(int, order))


def frozen_stages_of(value: int, depth: int, num_experts: int) -> int:
    """Return ``value``, from -1 to ``depth``; raises :class:`UserError` otherwise."""
    if not _is_between(value, -1, depth):
        raise UserError(
            f'must be an integer from -1 to {depth}, the blocks of arch, got {value!r}',
            'frozen_stages',
        )
    if value >= 0 and num_experts:
        raise UserError(
            f'is {value}: with mole the supernet is frozen except for its experts; leave it out',
            'frozen_stages',
        )
    return int(value)


def form_output(tokens: Tensor, out_type: str, prefix: int = 1) -> Tensor:
    """Pool tokens (B, prefix + H W, C), or form a square map of the patches.

    Returns:
        (B, C); with 'cls_avg' (B, 2 C), the class token and then the mean of the patches; with
        'featmap' (B, C, H, W).
    """
    if out_type == 'cls_token':
        return tokens[:, 0]
    patches = tokens[:, prefix:]
    if out_type == 'featmap':
        side = round(patches.shape[1] ** 0.5)
        return patches.transpose(1, 2).unflatten(2, (side, side))
    mean = patches.mean(dim=1)
    return torch.cat([tokens[:, 0], mean], dim=1) if out_type == 'cls_avg' else mean


def check_images(images: Tensor, spec: Mapping) -> None:
    """Raise :class:`UserError` unless images fit ``img_size`` and ``in_channels``."""
    expected = (spec['in_channels'], spec['img_size'], spec['img_size'])
    if images.shape[1:] != expected:
        raise UserError(
            f'the backbone takes images of shape {expected}, got {tuple(images.shape[1:])}; '
            'change img_size and in_channels of the backbone, or the data pipeline'
        )


def _is_between(value, low: int, high: int) -> bool:
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    return whole and low <= value <= high
