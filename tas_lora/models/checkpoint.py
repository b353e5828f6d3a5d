"""Checkpoints: other formats under our names, and what disagrees with a model."""

import re
from collections.abc import Mapping
from functools import partial

from mmengine.logging import print_log
from torch import Tensor

from ..errors import UserError
from .transfer import ADAPTABLE, adapt_sizes, from_plain, is_plain, split_qkv

# Official AutoFormer names (right of the dots: ours). There, `_k` and `_v` behind rel_pos_embed
# mean key and value, `_v` and `_h` behind embeddings_table vertical and horizontal.
_OFFICIAL_NAMES = (
    (r'^patch_embed_super\.proj\.', 'backbone.patch_embed.'),
    (r'^(blocks\.\d+\.attn)\.rel_pos_embed_([kv])\.embeddings_table_v$', r'\1.rel_pos_\2.vertical'),
    (
        r'^(blocks\.\d+\.attn)\.rel_pos_embed_([kv])\.embeddings_table_h$',
        r'\1.rel_pos_\2.horizontal',
    ),
    (r'^(blocks\.\d+)\.attn_layer_norm\.', r'\1.attn_norm.'),
    (r'^(blocks\.\d+)\.ffn_layer_norm\.', r'\1.ffn_norm.'),
    (r'^head\.', 'head.fc.'),
    (r'^(?=blocks\.|norm\.|pos_embed$|cls_token$)', 'backbone.'),
)

_TABLE = 'backbone.blocks.0.attn.rel_pos_k.vertical'


def is_autoformer(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of the official AutoFormer code."""
    return 'patch_embed_super.proj.weight' in state_dict


def from_autoformer(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official AutoFormer weights under our names.

    The one change of layout: ``qkv.weight`` (3 Q, C) interleaves query, key and value rows,
    ours is (3, Q, C), so that a slice is contiguous per part. Biases stay as they are.
    """
    converted = {}
    for name, value in state_dict.items():
        for pattern, replacement in _OFFICIAL_NAMES:
            name = re.sub(pattern, replacement, name)
        if name.endswith('qkv.weight'):
            value = split_qkv(name, value, (-1, 3)).transpose(0, 1).contiguous()
        converted[name] = value
    return converted


def adapt_state_dict(state_dict: dict[str, Tensor], model_state: Mapping[str, Tensor]) -> None:
    """Make ``state_dict`` loadable into a model, in place, or say why it cannot be.

    Official AutoFormer weights and exported subnets are renamed. Weights of a bare supernet get
    the experts and the router of ``model_state``, which leave the supernet as it is until they
    are trained.

    Raises:
        UserError: If the weights are of another architecture.
    """
    _rename(state_dict)
    _check_same_architecture(describe(state_dict), describe(model_state))
    experts = {k: v for k, v in model_state.items() if _is_expert_or_router(k)}
    if experts and not any(map(_is_expert_or_router, state_dict)):
        state_dict.update(experts)
        print_log('The checkpoint is a bare supernet: experts and router start fresh.', 'current')
    _check_same_tensors(state_dict, model_state)


def adapt_to_start(state_dict: dict[str, Tensor], model_state: Mapping[str, Tensor]) -> None:
    """Make ``state_dict``, in place, the start of a training with other images or classes.

    Positions are resized; a head for another number of classes is that of ``model_state``, the
    model's parameters. Each is said in the log. The rest is left to :func:`adapt_state_dict`.

    Raises:
        UserError: If the weights are of another architecture, or the head is frozen.
    """
    _rename(state_dict)
    file, model = describe(state_dict), describe(model_state)
    fixed = {field: size for field, size in file.items() if field not in ADAPTABLE}
    _check_same_architecture(fixed, model)
    adapt_sizes(state_dict, model_state, file, model)


def describe(state_dict: Mapping[str, Tensor]) -> dict:
    """The sizes that a state dict of a supernet shows, by the names of the config fields.

    Raises:
        UserError: If a tensor that shows a size is missing, or has another number of dimensions.
    """
    needed = {'backbone.pos_embed', 'backbone.patch_embed.weight', _TABLE}
    if not needed <= set(state_dict):
        keys = ', '.join(map(str, list(state_dict)[:3]))
        raise UserError(
            'these are no weights of an ElasticViT, or of an AutoFormer with relative positions '
            f'(keys: {keys}, ...)'
        )
    shape = partial(_shape, state_dict)
    blocks = [f'backbone.blocks.{i}' for i in range(_depth(state_dict))]
    table, patch = shape(_TABLE, 2), shape('backbone.patch_embed.weight', 4)
    _, tokens, embed_dim = shape('backbone.pos_embed', 3)
    sizes = dict(
        embed_dim=embed_dim,
        depth=len(blocks),
        num_heads=[shape(f'{block}.attn.qkv.weight', 3)[1] // table[1] for block in blocks],
        mlp_width=[shape(f'{block}.fc1.weight', 2)[0] for block in blocks],
        head_dim=table[1],
        max_relative_position=table[0] // 2 - 1,
        patch_size=patch[2],
        in_channels=patch[1],
        tokens=tokens,
    )
    if 'head.fc.weight' in state_dict:
        sizes['num_classes'] = shape('head.fc.weight', 2)[0]
    experts = {name: shape(name, 3) for name in state_dict if name.endswith('.lora_a')}
    if experts:
        sizes.update(
            num_experts=[s[0] for s in experts.values()],
            rank=[s[1] for s in experts.values()],
            layers=sorted({name.split('.')[-2] for name in experts}),
        )
    return sizes


def _depth(state_dict: Mapping[str, Tensor]) -> int:
    prefix = 'backbone.blocks.'
    return len({name.split('.')[2] for name in state_dict if name.startswith(prefix)})


def _shape(state_dict: Mapping[str, Tensor], name: str, dims: int) -> tuple[int, ...]:
    """Shape of a tensor that must be there, with so many dimensions, none of them empty."""
    found = tuple(state_dict[name].shape) if name in state_dict else ()
    if len(found) != dims or 0 in found:
        raise UserError(
            f'{name} of the weights is {found or "missing"}, expected {dims} dimensions; the file '
            'is damaged, or of another architecture'
        )
    return found


def _rename(state_dict: dict[str, Tensor]) -> None:
    for has_format, convert in ((is_autoformer, from_autoformer), (is_plain, from_plain)):
        if has_format(state_dict):
            converted = convert(state_dict)
            state_dict.clear()
            state_dict.update(converted)


def _check_same_architecture(file: dict, model: dict) -> None:
    if 'num_experts' in file and 'num_experts' not in model:
        raise UserError(
            'the checkpoint holds experts, the config none; use the config it was trained with'
        )
    differences = [
        f'{field} {_short(file[field])} in the checkpoint, {_short(model[field])} in the config'
        for field in file
        if field in model and file[field] != model[field]
    ]
    if differences:
        raise UserError('checkpoint and config are not of one size: ' + '; '.join(differences))


def _check_same_tensors(file: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> None:
    """What is left to differ when the sizes agree: another router, head or option."""
    shapes = [
        {name: tuple(value.shape) for name, value in state.items()} for state in (file, model)
    ]
    odd = sorted(name for name, _ in shapes[0].items() ^ shapes[1].items())
    if odd:
        first = odd[0]
        found, wanted = (shape.get(first, 'missing') for shape in shapes)
        raise UserError(
            f'checkpoint and config differ in {len(set(odd))} tensors, the first {first}: '
            f'{found} in the checkpoint, {wanted} in the config'
        )


def _short(value) -> str:
    if isinstance(value, list) and len(set(value)) == 1:
        return f'{value[0]} x {len(value)}'
    return str(value)


def _is_expert_or_router(name: str) -> bool:
    return name.startswith('router.') or name.endswith(('.lora_a', '.lora_b'))
