"""Start one network from the weights of another: resized positions, a head for other classes."""

import re
from collections.abc import Mapping
from itertools import product
from math import isqrt

import torch
from mmengine.logging import print_log
from mmpretrain.models.utils import resize_pos_embed
from torch import Tensor

from ..errors import UserError

# Sizes, as ``checkpoint.describe`` names them, in which a model may differ from its start.
ADAPTABLE = frozenset({'tokens', 'max_relative_position', 'num_classes'})

_FEATURE_MAP, _ROUTER = 'feature_map.', 'router.'
_CLASS, _POSITIONS = 'backbone.cls_token', 'backbone.pos_embed'
_TABLE = re.compile(r'\.rel_pos_[kv]\.(vertical|horizontal)$')


def adapt_sizes(
    state_dict: dict[str, Tensor], model_state: Mapping[str, Tensor], file: dict, model: dict
) -> None:
    """Adapt positions and head of ``state_dict``, in place, to the model that starts from it.

    ``file`` and ``model`` are the sizes of both, from ``checkpoint.describe``; they differ only in
    ``ADAPTABLE``.

    Raises:
        UserError: If the patches of ``state_dict`` are not a square, or a head for other classes
            is frozen.
    """
    tokens, offsets, classes = (
        (file.get(field), model.get(field))
        for field in ('tokens', 'max_relative_position', 'num_classes')
    )
    if (None in offsets) and offsets != (None, None):
        raise UserError(
            f'max_relative_position {offsets[0]} in the checkpoint, {offsets[1]} in the config: '
            'one has tables of relative positions, the other none; set the same in the backbone'
        )
    if tokens[0] != tokens[1] or offsets[0] != offsets[1]:
        _adapt_positions(state_dict, tokens, offsets)
    new_head = any(name.startswith('head.') for name in model_state)
    if new_head and classes[1] is not None and classes[0] != classes[1]:
        _renew_head(state_dict, model_state, classes)


def start_from_one_expert(state_dict: dict[str, Tensor], model_state: Mapping[str, Tensor]) -> None:
    """Give a model of several experts those of a file with a single one, in place.

    Each expert starts as a copy of it, so that every subnet does. If the model has shared experts,
    the first of them is the copy, and all others start fresh. The router starts fresh.
    """
    names = [name for name in state_dict if name.endswith(('.lora_a', '.lora_b'))]
    counts = {name: len(model_state[name]) for name in names if name in model_state}
    is_single = all(state_dict[name].shape[:1] == (1,) for name in names)
    if not counts or not is_single or max(counts.values()) == 1:
        return
    bias = model_state.get('router.head_bias')  # its last axis: the experts to route to
    is_shared = bias is not None and bias.shape[-1] < max(counts.values())
    for name, count in counts.items():
        copies = 1 if is_shared else count
        one, fresh = state_dict[name], model_state[name].detach()
        copied = one.expand(copies, *one.shape[1:])
        same = one.shape[1:] == fresh.shape[1:]  # else the sizes are refused later
        state_dict[name] = torch.cat([copied, fresh[copies:]]) if same else copied.clone()
    for name in [name for name in state_dict if name.startswith(_ROUTER)]:
        del state_dict[name]
    state_dict.update({k: v.detach() for k, v in model_state.items() if k.startswith(_ROUTER)})
    which = 'the first shared expert starts' if is_shared else 'all experts start'
    print_log(f'The checkpoint has one expert: {which} as a copy of it.', 'current')


def settle_feature_map(state_dict: dict[str, Tensor], model_state: Mapping[str, Tensor]) -> None:
    """Drop the map of features that a model does not have, and add a fresh one, in place."""
    own = {k: v.detach() for k, v in model_state.items() if k.startswith(_FEATURE_MAP)}
    for name in [name for name in state_dict if name.startswith(_FEATURE_MAP)]:
        if name not in own:
            del state_dict[name]
    for name, value in own.items():
        state_dict.setdefault(name, value)


def layouts(tokens: int, prefix: int) -> list[tuple[int, int]]:
    """Ways to read the rows of a position embedding: rows of prefix tokens, patches along a side.

    There is none if the patches are no square.

    Args:
        tokens: All rows.
        prefix: Prefix tokens P of the network; all of them have rows, or none has.
    """
    found = [(rows, isqrt(tokens - rows)) for rows in dict.fromkeys((prefix, 0)) if tokens > rows]
    return [(rows, grid) for rows, grid in found if grid**2 + rows == tokens]


def match_prefix(state_dict: dict[str, Tensor], model_state: Mapping[str, Tensor]) -> None:
    """Fold the positions of prefix tokens, in place, if the model has no rows for them.

    They are added to the tokens themselves, which does not change what the network computes.

    Raises:
        UserError: If the patches of ``state_dict`` are not a square.
    """
    prefix = state_dict[_CLASS].shape[1] if _CLASS in state_dict else 0
    tokens, own = (state[_POSITIONS].shape[1] for state in (state_dict, model_state))
    if tokens == own or (_CLASS in model_state and model_state[_CLASS].shape[1] != prefix):
        return
    pairs = product(layouts(tokens, prefix), layouts(own, prefix))
    pairs = [(file, model) for file, model in pairs if file[0] >= model[0]]
    if not pairs:
        raise UserError(
            f'the checkpoint has {tokens} tokens, which is not a square of patches and '
            f'{prefix or "no"} prefix tokens, as in the model; positions can only be resized from '
            'one square grid to another'
        )
    # The same grid if possible, else the same rows: two squares may differ by as many as P.
    file, model = min(pairs, key=lambda p: (p[0][1] != p[1][1], p[0][0] != p[1][0]))
    if file[0] > model[0]:
        positions = state_dict[_POSITIONS]
        if positions.shape[2] == state_dict[_CLASS].shape[2]:
            state_dict[_CLASS] = state_dict[_CLASS] + positions[:, :prefix]
        state_dict[_POSITIONS] = positions[:, prefix:]


def resample_table(table: Tensor, grids: tuple[int, int], max_offset: int) -> Tensor:
    """Interpolate a table of relative positions for another grid or another largest offset.

    Offset o of the new grid spans as much of the image as o * old / new of the old one, where its
    row is interpolated. Offsets beyond the old grid were never trained, so they get the row of
    the outermost offset.

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
    for name in [name for name in state_dict if name.startswith('head.')]:
        del state_dict[name]
    state_dict.update((name, value.detach()) for name, value in head.items())
    print_log(
        f'The checkpoint has {classes[0] or "no"} classes, the config {classes[1]}: the head '
        'starts anew.',
        'current',
    )


def _adapt_positions(
    state_dict: dict[str, Tensor], tokens: tuple[int, int], offsets: tuple[int | None, int | None]
) -> None:
    prefix = state_dict[_CLASS].shape[1] if _CLASS in state_dict else 0
    file, model = (dict(layouts(count, prefix)) for count in tokens)
    rows = next(rows for rows in (prefix, 0) if rows in file and rows in model)  # as match_prefix
    grids = old, new = file[rows], model[rows]
    for name, value in state_dict.items():
        if name == _POSITIONS:
            state_dict[name] = resize_pos_embed(value, (old,) * 2, (new,) * 2, 'bicubic', rows)
        elif _TABLE.search(name) and len(value) == 2 * offsets[0] + 2:
            state_dict[name] = resample_table(value, grids, offsets[1])
    if old != new:
        print_log(
            f'The checkpoint has {old} x {old} patches, the config {new} x {new}: '
            'the position embedding is resized.',
            'current',
        )
    if offsets != (None, None):
        print_log(
            f'Relative positions are clipped at {offsets[0]} on the grid of {old} of the '
            f'checkpoint, at {offsets[1]} on that of {new} of the config: their tables are '
            'interpolated.',
            'current',
        )
