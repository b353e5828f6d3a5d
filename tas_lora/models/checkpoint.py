"""Checkpoints: convert other formats to our names, and check the weights against a model."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from mmengine.logging import print_log
from mmengine.model import PretrainedInit
from torch import Tensor, nn

from ..checks import inside, one_of
from ..errors import UserError
from .foreign_names import (
    from_huggingface,
    from_mmpretrain,
    from_timm,
    is_huggingface,
    is_mmpretrain,
    is_timm,
    renamed,
    split_qkv,
)
from .safe_load import read_state_dict, unwrapped
from .transfer import (
    ADAPTABLE,
    adapt_sizes,
    match_prefix,
    settle_feature_map,
    start_from_one_expert,
)

# From official AutoFormer names to ours. There, `_k` and `_v` after rel_pos_embed mean key and
# value, `_v` and `_h` after embeddings_table vertical and horizontal.
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

# From the names of PlainViT to ours.
_PLAIN_NAMES = (
    (r'\.(k|v)(?:ey|alue)_rows$', r'.rel_pos_\1.vertical'),
    (r'\.(k|v)(?:ey|alue)_columns$', r'.rel_pos_\1.horizontal'),
    (r'^(?!head\.)', 'backbone.'),
    (r'^head\.', 'head.fc.'),
)

_ORDER = 'backbone.block_order'  # optional; the backbone compares it with its own
_TABLE = 'backbone.blocks.0.attn.rel_pos_k.vertical'
_QKV = 'backbone.blocks.0.attn.qkv.weight'
_CLASS = 'backbone.cls_token'
_INIT = 'ElasticViT.init_cfg'  # read after the backbone is built


def is_autoformer(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of the official AutoFormer code."""
    return 'patch_embed_super.proj.weight' in state_dict


def from_autoformer(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert official AutoFormer weights to our names.

    Only the layout of ``qkv.weight`` (3 Q, C) changes. It interleaves query, key and value rows;
    ours is (3, Q, C), so that a slice is contiguous per part. Biases stay as they are.
    """
    return _converted(state_dict, _OFFICIAL_NAMES, interleaved=True)


def is_plain(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of an exported subnet, a ``PlainViT``."""
    return 'blocks.0.attn_norm.weight' in state_dict


def from_plain(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert an exported subnet to our names, and ``qkv.weight`` from (3 Q, C) to (3, Q, C)."""
    return _converted(state_dict, _PLAIN_NAMES, interleaved=False)


def _converted(
    state_dict: Mapping[str, Tensor], names: Sequence[tuple[str, str]], interleaved: bool
) -> dict[str, Tensor]:
    converted = {}
    for name, value in state_dict.items():
        name = renamed(name, names)
        if name.endswith('qkv.weight'):
            value = split_qkv(name, value, interleaved)
        converted[name] = value
    return converted


_FORMATS = (
    (is_autoformer, from_autoformer),
    (is_plain, from_plain),
    (is_timm, from_timm),
    (is_huggingface, from_huggingface),
    (is_mmpretrain, from_mmpretrain),
)


def adapt_state_dict(state_dict: dict[str, Tensor], model_state: Mapping[str, Tensor]) -> None:
    """Make ``state_dict`` loadable into a model, in place.

    Official AutoFormer weights, exported subnets, and ViTs of timm, Hugging Face and MMPretrain
    are renamed. Weights of a bare supernet get the experts and the router of ``model_state``,
    which do not change its output until they are trained.

    Raises:
        UserError: If the weights have another architecture.
    """
    _check_same_architecture(*_matched(state_dict, model_state))
    experts = {k: v for k, v in model_state.items() if _is_expert_or_router(k)}
    if experts and not any(map(_is_expert_or_router, state_dict)):
        state_dict.update(experts)
        print_log('The checkpoint is a bare supernet: experts and router start fresh.', 'current')
    _check_same_tensors(state_dict, model_state)


def adapt_to_start(state_dict: dict[str, Tensor], model_state: Mapping[str, Tensor]) -> None:
    """Adapt ``state_dict``, in place, to start a training with other images or classes.

    Positions are resized. A head for another number of classes, or a missing one, is replaced by
    that of ``model_state``, the model's parameters. A single expert is copied to all. The log
    reports each. :func:`adapt_state_dict` does the rest.

    Raises:
        UserError: If the weights have another architecture, or a head to replace is frozen.
    """
    _rename(state_dict)
    start_from_one_expert(state_dict, model_state)
    file, model = _matched(state_dict, model_state)
    fixed = {field: size for field, size in file.items() if field not in ADAPTABLE}
    _check_same_architecture(fixed, model)
    adapt_sizes(state_dict, model_state, file, model)


def _matched(state_dict: dict[str, Tensor], model_state: Mapping[str, Tensor]) -> tuple[dict, dict]:
    """Rename weights, and give them the form of the model where that changes no output, in place.

    Returns:
        The sizes of both, from :func:`describe`.
    """
    _rename(state_dict)
    describe(state_dict)  # refuses damaged weights
    settle_feature_map(state_dict, model_state)
    match_prefix(state_dict, model_state)
    scales = {name for name in model_state if name.endswith(('.attn_scale', '.mlp_scale'))}
    if not any(name.endswith(('.attn_scale', '.mlp_scale')) for name in state_dict):
        # Another network has no LayerScale; an exported one has it in its weights.
        state_dict.update((name, torch.ones_like(model_state[name])) for name in scales)
    head = [name for name in state_dict if name.startswith('head.')]
    if head and not any(name.startswith('head.') for name in model_state):
        print_log("The model has no head: the checkpoint's is not read.", 'current')
        for name in head:
            del state_dict[name]
    return describe(state_dict), describe(model_state)


def pretrained_file(init_cfg: dict | list | None) -> str | None:
    """The checkpoint of an ``init_cfg`` of type 'Pretrained', None if it has another type.

    Raises:
        UserError: If a 'Pretrained' one has no file, an unknown option, another prefix than
            'backbone.', or others next to it.
    """
    configs = init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg or {}]
    for config in configs:
        if config.get('type') in ('Pretrained', PretrainedInit):
            unknown = sorted(set(config) - {'type', 'checkpoint', 'prefix', 'map_location'})
            if not isinstance(config.get('checkpoint'), str) or unknown or len(configs) > 1:
                raise UserError(
                    f"must be dict(type='Pretrained', checkpoint=FILE) alone, got {init_cfg!r}",
                    _INIT,
                )
            one_of(config.get('prefix'), f'{_INIT}.prefix', (None, 'backbone', 'backbone.'))
            return config['checkpoint']
    return None


def load_pretrained(backbone: nn.Module, file: str) -> None:
    """Load the backbone of a checkpoint of ours, an export, or a file of another library.

    MMEngine itself would load whatever names fit, leave the rest untrained with a warning, and
    not read safetensors. Positions are resized if the image size differs.

    Raises:
        UserError: If the file is none of these, or its backbone has another architecture.
    """
    own = backbone.state_dict(prefix='backbone.', keep_vars=True)
    with inside(f'{_INIT}.checkpoint {file}'):
        state = read_state_dict(file)
        _rename(state)
        state = {name: value for name, value in state.items() if name.startswith('backbone.')}
        adapt_to_start(state, own)
        adapt_state_dict(state, own)
    backbone.load_state_dict(
        {name.removeprefix('backbone.'): value for name, value in state.items()}
    )


def describe(state_dict: Mapping[str, Tensor]) -> dict:
    """Read the sizes of a supernet from its state dict, by the names of the config fields.

    Raises:
        UserError: If a tensor that gives a size is missing or has other dimensions.
    """
    needed = {'backbone.pos_embed', 'backbone.patch_embed.weight', _QKV}
    if not needed <= set(state_dict):
        keys = ', '.join(map(str, list(state_dict)[:3]))
        raise UserError(
            'these are not weights of an ElasticViT, or of a ViT of AutoFormer, timm, Hugging Face '
            f'or MMPretrain (keys: {keys}, ...)'
        )
    shape = partial(_shape, state_dict)
    depth = len({k.split('.')[2] for k in state_dict if k.startswith('backbone.blocks.')})
    blocks = [f'backbone.blocks.{i}' for i in range(depth)]
    patch = shape('backbone.patch_embed.weight', 4)
    _, tokens, embed_dim = shape('backbone.pos_embed', 3)
    widths = [shape(f'{block}.attn.qkv.weight', 3)[1] for block in blocks]
    sizes = dict(
        embed_dim=embed_dim,
        depth=depth,
        **_attention(widths, shape(_TABLE, 2) if _TABLE in state_dict else None),
        mlp_width=[shape(f'{block}.fc1.weight', 2)[0] for block in blocks],
        patch_size=patch[2],
        in_channels=patch[1],
        num_prefix_tokens=shape(_CLASS, 3)[1] if _CLASS in state_dict else 0,
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


def _attention(widths: list[int], table: tuple[int, int] | None) -> dict:
    """Sizes of attention; only tables of relative positions (2 R + 2, D) tell the heads' width."""
    if table is None:
        return dict(attention_width=widths, max_relative_position=None)
    return dict(
        num_heads=[width // table[1] for width in widths],
        head_dim=table[1],
        max_relative_position=table[0] // 2 - 1,
    )


def _shape(state_dict: Mapping[str, Tensor], name: str, dims: int) -> tuple[int, ...]:
    """Shape of a required tensor with ``dims`` dimensions, none of them empty."""
    found = tuple(state_dict[name].shape) if name in state_dict else ()
    if len(found) != dims or 0 in found:
        raise UserError(
            f'{name} of the weights is {found or "missing"}, expected {dims} dimensions; the file '
            'is damaged or has another architecture'
        )
    return found


def _rename(state_dict: dict[str, Tensor]) -> None:
    _replace(state_dict, unwrapped(state_dict))
    for has_format, convert in _FORMATS:
        if has_format(state_dict):
            _replace(state_dict, convert(state_dict))


def _replace(state_dict: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    state_dict.clear()
    state_dict.update(other)


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
        raise UserError('checkpoint and config differ in size: ' + '; '.join(differences))


def _check_same_tensors(file: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> None:
    """With equal sizes, the router, the head or an option may still differ."""
    found, wanted = (
        {name: tuple(value.shape) for name, value in state.items() if name != _ORDER}
        for state in (file, model)
    )
    odd = sorted({name for name, _ in found.items() ^ wanted.items()})
    if odd:
        raise UserError(
            f'checkpoint and config differ in {len(odd)} tensors, the first {odd[0]}: '
            f'{found.get(odd[0], "missing")} in the checkpoint, '
            f'{wanted.get(odd[0], "missing")} in the config'
        )


def _short(value) -> str:
    if isinstance(value, list) and len(set(value)) == 1:
        return f'{value[0]} x {len(value)}'
    return str(value)


def _is_expert_or_router(name: str) -> bool:
    return name.startswith('router.') or name.endswith(('.lora_a', '.lora_b'))
