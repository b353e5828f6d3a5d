"""What leaves a backbone: of which blocks, in what form, and which blocks are not trained."""

from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ...errors import UserError

if TYPE_CHECKING:
    from .elastic_vit import ElasticViT

OUT_TYPES = ('avg_featmap', 'cls_token', 'featmap')


def output_blocks(indices: int | Sequence[int], depth: int) -> tuple[int, ...]:
    """Numbers of blocks from 0, of indices that may count from the end.

    Args:
        indices: One index or several, each from ``-depth`` to ``depth - 1``.
        depth: Number of blocks.

    Raises:
        UserError: Unless they are such, in rising order, none twice.
    """
    several = isinstance(indices, Sequence) and not isinstance(indices, str)
    given = tuple(indices) if several else (indices,)
    if not given or not all(_is_between(index, -depth, depth - 1) for index in given):
        raise UserError(
            f'model.backbone.out_indices must be integers from {-depth} to {depth - 1}, as arch '
            f'has {depth} blocks, got {indices!r}'
        )
    blocks = tuple(int(index) % depth for index in given)
    if list(blocks) != sorted(set(blocks)):
        raise UserError(
            f'model.backbone.out_indices must rise, each block once, got {indices!r}, which are '
            f'blocks {list(blocks)}'
        )
    return blocks


def frozen_stages_of(value: int, depth: int, num_experts: int) -> int:
    """``value`` as a number of frozen blocks, or -1; raises :class:`UserError`."""
    if not _is_between(value, -1, depth):
        raise UserError(
            f'model.backbone.frozen_stages must be an integer from -1 to {depth}, the blocks of '
            f'arch, got {value!r}'
        )
    if value >= 0 and num_experts:
        raise UserError(
            f'model.backbone.frozen_stages is {value}: with mole the whole supernet is frozen '
            'beside its experts; leave frozen_stages out'
        )
    return int(value)


def form_output(tokens: Tensor, out_type: str) -> Tensor:
    """Tokens (B, 1 + H W, C) of a square as (B, C), or as a map (B, C, H, W)."""
    if out_type == 'cls_token':
        return tokens[:, 0]
    patches = tokens[:, 1:]
    if out_type == 'avg_featmap':
        return patches.mean(dim=1)
    side = round(patches.shape[1] ** 0.5)
    return patches.transpose(1, 2).unflatten(2, (side, side))


def frozen_parts(backbone: 'ElasticViT') -> list[nn.Module]:
    """The modules that ``frozen_stages`` keeps as they are."""
    stages = backbone.frozen_stages
    if stages < 0:
        return []
    norm = [backbone.norm] if stages == backbone.arch.depth else []
    return [backbone.patch_embed, *backbone.blocks[:stages], *norm]


def freeze(backbone: 'ElasticViT') -> None:
    """Take what ``frozen_stages`` names, tokens and positions with it, out of training."""
    for part in frozen_parts(backbone):
        part.requires_grad_(False)
    if backbone.frozen_stages >= 0:
        backbone.cls_token.requires_grad_(False)
        backbone.pos_embed.requires_grad_(False)


def _is_between(value, low: int, high: int) -> bool:
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    return whole and low <= value <= high
