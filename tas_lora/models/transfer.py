"""Weights of one network as the start of another: exported names, image size, classes."""

import re
from collections.abc import Mapping
from math import isqrt

import torch
from mmengine.logging import print_log
from mmpretrain.models.utils import resize_pos_embed
from torch import Tensor

from ..errors import UserError

# Sizes, as ``checkpoint.describe`` names them, in which a training may differ from its start.
ADAPTABLE = frozenset({'tokens', 'max_relative_position', 'num_classes'})

# Names of PlainViT, and ours.
_PLAIN_NAMES = (
    (r'\.(k|v)(?:ey|alue)_rows$', r'.rel_pos_\1.vertical'),
    (r'\.(k|v)(?:ey|alue)_columns$', r'.rel_pos_\1.horizontal'),
    (r'^(?!head\.)', 'backbone.'),
    (r'^head\.', 'head.fc.'),
)
_TABLE = re.compile(r'\.rel_pos_[kv]\.(vertical|horizontal)$')


def is_plain(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of an exported subnet, a ``PlainViT``."""
    return 'blocks.0.attn.key_rows' in state_dict


def from_plain(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of an exported subnet under our names; ``qkv.weight`` (3 Q, C) to (3, Q, C)."""
    converted = {}
    for name, value in state_dict.items():
        for pattern, replacement in _PLAIN_NAMES:
            name = re.sub(pattern, replacement, name)
        if name.endswith('qkv.weight'):
            value = split_qkv(name, value, (3, -1))
        converted[name] = value
    return converted


def split_qkv(name: str, value: Tensor, sizes: tuple[int, int]) -> Tensor:
    """Rows of query, key and value apart, by ``sizes``, one of which is 3; refused if uneven."""
    if value.dim() != 2 or not len(value) or len(value) % 3:
        raise UserError(
            f'{name} of the checkpoint is {tuple(value.shape)}, which is not as many rows of '
            'query as of key and value; it is damaged, or of another kind'
        )
    return value.unflatten(0, sizes)


def adapt_sizes(
    state_dict: dict[str, Tensor], model_state: Mapping[str, Tensor], file: dict, model: dict
) -> None:
    """Adapt positions and head of ``state_dict``, in place, to a model it is to start.

    Args:
        state_dict: The weights, by our names.
        model_state: The model's own parameters; its head is taken where the classes differ.
        file: Sizes of ``state_dict``, of ``checkpoint.describe``.
        model: Sizes of ``model_state``; they differ from ``file`` in ``ADAPTABLE`` alone.

    Raises:
        UserError: If the patches of ``state_dict`` are no square, or if a head for other classes
            would stay untrained.
    """
    tokens, offsets, classes = (
        (file.get(field), model.get(field))
        for field in ('tokens', 'max_relative_position', 'num_classes')
    )
    if tokens[0] != tokens[1] or offsets[0] != offsets[1]:
        _adapt_positions(state_dict, tuple(map(grid_of, tokens)), offsets)
    if None not in classes and classes[0] != classes[1]:
        _renew_head(state_dict, model_state, classes)


def grid_of(tokens: int) -> int:
    """Patches along a side, from the number of tokens: a square and the class token."""
    grid = isqrt(max(tokens - 1, 0))
    if not grid or grid**2 + 1 != tokens:
        raise UserError(
            f'the checkpoint has {tokens} tokens, which is no square of patches and a class '
            'token; positions can be resized from one square grid to another alone'
        )
    return grid


def resample_table(table: Tensor, grids: tuple[int, int], max_offset: int) -> Tensor:
    """A table of relative positions for another grid, or another largest offset.

    Offset o of the new grid spans as much of the image as o * old / new of the old one; its row
    is interpolated there. Offsets that the old grid did not have were never trained, so those
    beyond its ends get the row of the end.

    Args:
        table: (2 R' + 2, D), row 0 for pairs with the class token, row o + R' + 1 for offset o.
        grids: Patches along a side, old and new.
        max_offset: The new R.

    Returns:
        (2 R + 2, D), row 0 as it was.
    """
    old_grid, new_grid = grids
    old_offset = len(table) // 2 - 1
    reach = min(old_offset, old_grid - 1)
    offset = torch.arange(-max_offset, max_offset + 1, dtype=torch.float64)
    row = (offset * old_grid / new_grid).clamp(-reach, reach) + old_offset + 1
    low = row.floor().long()
    high = row.ceil().long()
    share = (row - low).float().unsqueeze(1)
    rows = torch.lerp(table[low].float(), table[high].float(), share)
    return torch.cat([table[:1], rows.to(table.dtype)])


def _renew_head(
    state_dict: dict[str, Tensor], model_state: Mapping[str, Tensor], classes: tuple[int, int]
) -> None:
    head = {name: value for name, value in model_state.items() if name.startswith('head.')}
    if not any(value.requires_grad for value in head.values()):
        raise UserError(
            f'num_classes {classes[0]} in the checkpoint, {classes[1]} in the config, whose head '
            'is frozen and would never learn them; train the supernet on these classes first'
        )
    state_dict.update((name, value.detach()) for name, value in head.items())
    _say(f'The checkpoint has {classes[0]} classes, the config {classes[1]}: the head starts anew.')


def _adapt_positions(
    state_dict: dict[str, Tensor], grids: tuple[int, int], offsets: tuple[int, int]
) -> None:
    old, new = grids
    for name, value in state_dict.items():
        if name == 'backbone.pos_embed':
            state_dict[name] = resize_pos_embed(value, (old, old), (new, new))
        elif _TABLE.search(name) and len(value) == 2 * offsets[0] + 2:
            state_dict[name] = resample_table(value, grids, offsets[1])
    if old != new:
        _say(
            f'The checkpoint has {old} x {old} patches, the config {new} x {new}: '
            'the position embedding is resized.'
        )
    _say(
        f'Relative positions are clipped at {offsets[0]} on the grid of {old} of the checkpoint, '
        f'at {offsets[1]} on that of {new} of the config: their tables are interpolated.'
    )


def _say(message: str) -> None:
    print_log(message, 'current')
