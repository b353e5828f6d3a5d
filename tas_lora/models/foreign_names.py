"""Weights of vision transformers of other libraries, under the names of ``ElasticViT``.

Tables of names for timm and the official code it follows (DeiT, MAE, DINO, DINOv2), Hugging Face
and MMPretrain. What has no counterpart in the supernet is refused by its name, so that no weight
is dropped silently.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from mmengine.logging import print_log
from torch import Tensor

from ..errors import UserError, blame

_TIMM = (
    (r'^patch_embed\.proj\.', 'patch_embed.'),
    (r'^norm_pre\.', 'pre_norm.'),
    (r'^fc_norm\.', 'norm.'),
    (r'^(blocks\.\d+)\.norm1\.', r'\1.attn_norm.'),
    (r'^(blocks\.\d+)\.norm2\.', r'\1.ffn_norm.'),
    (r'^(blocks\.\d+)\.mlp\.(fc[12])\.', r'\1.\2.'),
    (r'^(blocks\.\d+)\.(?:ls1\.gamma|gamma_1)$', r'\1.attn_scale'),
    (r'^(blocks\.\d+)\.(?:ls2\.gamma|gamma_2)$', r'\1.mlp_scale'),
    (r'^head\.', 'head.fc.'),
    (r'^reg_token$', 'registers'),
    (r'^register_tokens$', 'registers_without_positions'),  # DINOv2's own code
)

# Of the files, of transformers 5 in memory, and of CLIP.
_HUGGINGFACE = (
    (r'^embeddings\.(?:cls_token|class_embedding)$', 'cls_token'),
    (r'^embeddings\.(?:patch_embeddings\.projection|patch_embedding)\.', 'patch_embed.'),
    (r'^embeddings\.(?:position_embeddings|position_embedding\.weight)$', 'pos_embed'),
    (r'^embeddings\.distillation_token$', 'registers'),
    (r'^embeddings\.register_tokens$', 'registers_without_positions'),
    (r'^(?:encoder\.)?layers?\.(?=\d)', 'blocks.'),
    (r'\.attention\.attention\.(query|key|value)\.', r'.attn.\1.'),
    (r'\.(?:attention|self_attn)\.q_proj\.', '.attn.query.'),
    (r'\.(?:attention|self_attn)\.k_proj\.', '.attn.key.'),
    (r'\.(?:attention|self_attn)\.v_proj\.', '.attn.value.'),
    (r'\.(?:attention\.output\.dense|attention\.o_proj|self_attn\.out_proj)\.', '.attn.proj.'),
    (r'\.(?:intermediate\.dense|mlp\.fc1)\.', '.fc1.'),
    (r'^(blocks\.\d+)\.(?:output\.dense|mlp\.fc2)\.', r'\1.fc2.'),
    (r'\.(?:layernorm_before|norm1|layer_norm1)\.', '.attn_norm.'),
    (r'\.(?:layernorm_after|norm2|layer_norm2)\.', '.ffn_norm.'),
    (r'\.layer_scale1\.lambda1$', '.attn_scale'),
    (r'\.layer_scale2\.lambda1$', '.mlp_scale'),
    (r'^pre_layrnorm\.', 'pre_norm.'),
    (r'^(?:layernorm|post_layernorm)\.', 'norm.'),
    (r'^(?:classifier|visual_projection)\.', 'head.fc.'),
)

_MMPRETRAIN = (
    (r'^patch_embed\.projection\.', 'patch_embed.'),
    (r'^layers\.(\d+)\.ln1\.', r'blocks.\1.attn_norm.'),
    (r'^layers\.(\d+)\.ln2\.', r'blocks.\1.ffn_norm.'),
    (r'^layers\.(\d+)\.attn\.gamma1\.weight$', r'blocks.\1.attn_scale'),
    (r'^layers\.(\d+)\.ffn\.gamma2\.(?:scale|weight)$', r'blocks.\1.mlp_scale'),
    (r'^layers\.(\d+)\.ffn\.layers\.0\.0\.', r'blocks.\1.fc1.'),
    (r'^layers\.(\d+)\.ffn\.layers\.1\.', r'blocks.\1.fc2.'),
    (r'^layers\.(?=\d+\.attn\.)', 'blocks.'),
    (r'^ln[12]\.', 'norm.'),
    (r'^head\.(?:fc|layers\.head)\.', 'head.fc.'),
)

# What no classifier reads: for pretraining, for text, or an unused extra layer.
_UNUSED = re.compile(
    r'(^|\.)mask_token$|^pooler\.|^embeddings\.position_ids$|^text_model\.|^text_projection\.|'
    r'^logit_scale$'
)
_KNOWN = re.compile(
    r'^(cls_token|pos_embed|(patch_embed|pre_norm|norm|head\.fc)\.(weight|bias)|'
    r'blocks\.\d+\.((attn_norm|ffn_norm|attn\.qkv|attn\.proj|fc1|fc2)\.(weight|bias)|'
    r'attn_scale|mlp_scale))$'
)
_HUGGINGFACE_PATCHES = re.compile(r'^(.*\.)?embeddings\.patch_embedding(s\.projection)?\.weight$')
_WITH_BIAS = re.compile(r'^(.*\.)?(patch_embed|qkv|proj|fc1|fc2|fc)\.weight$')


def is_timm(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of timm's ``VisionTransformer``."""
    return {'patch_embed.proj.weight', 'blocks.0.norm1.weight'} <= set(state_dict)


def is_huggingface(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of a ViT of transformers."""
    return any(_HUGGINGFACE_PATCHES.match(str(name)) for name in state_dict)


def is_mmpretrain(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of MMPretrain's ``VisionTransformer``, or a classifier of it."""
    names = {str(name).removeprefix('backbone.') for name in state_dict}
    return {'patch_embed.projection.weight', 'layers.0.ln1.weight'} <= names


def from_timm(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert weights of timm's ``VisionTransformer`` to our names.

    Raises:
        UserError: If a weight has no counterpart, such as that of a pooling by attention.
    """
    return _converted(state_dict, _TIMM, 'timm')


def from_huggingface(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert weights of transformers' ViT, DeiT, DINOv2 or CLIP to our names.

    Prefixes such as ``vit.`` may be there or not. A register has no position of its own there, and
    gets one of zeros. Poolers, mask tokens and text models are left out: no classifier reads them.

    Raises:
        UserError: If a weight has no counterpart, such as that of a gated MLP.
    """
    patches = next(filter(_HUGGINGFACE_PATCHES.match, state_dict))
    prefix = patches[: patches.index('embeddings.')]
    state = {name.removeprefix(prefix): value for name, value in state_dict.items()}
    if 'classifier.weight' in state and 'pre_layrnorm.weight' in state:
        # CLIPForImageClassification averages patches before the last norm, which it never uses.
        state = {k: v for k, v in state.items() if not k.startswith('post_layernorm.')}
    return _converted(state, _HUGGINGFACE, 'Hugging Face')


def from_mmpretrain(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert weights of MMPretrain's ``VisionTransformer`` to our names.

    Raises:
        UserError: If a weight has no counterpart, such as that of a second final norm.
    """
    state = {name.removeprefix('backbone.'): value for name, value in state_dict.items()}
    if {'ln1.weight', 'ln2.weight'} <= set(state):
        raise UserError(
            'MMPretrain: the weights have a norm before and one after the pooling (ln1 and ln2); '
            'the supernet has one of them'
        )
    return _converted(state, _MMPRETRAIN, 'MMPretrain')


def split_qkv(name: str, value: Tensor, interleaved: bool) -> Tensor:
    """Split rows (3 Q, C) into query, key and value, (3, Q, C)."""
    if value.dim() != 2 or not len(value) or len(value) % 3:
        raise UserError(
            f'{name} of the checkpoint is {tuple(value.shape)}, which is not as many rows of '
            'query as of key and value; it is damaged, or of another kind'
        )
    if interleaved:
        return value.unflatten(0, (-1, 3)).transpose(0, 1).contiguous()
    return value.unflatten(0, (3, -1))


def renamed(name: str, table: Sequence[tuple[str, str]]) -> str:
    """``name`` after all replacements of a table."""
    for pattern, replacement in table:
        name = re.sub(pattern, replacement, name)
    return name


def _converted(
    state_dict: Mapping[str, Tensor], table: Sequence[tuple[str, str]], library: str
) -> dict[str, Tensor]:
    unused = sorted(filter(_UNUSED.search, state_dict))
    if unused:
        print_log(f'Not read, as no classifier uses it: {_list(unused)}.', 'current')
    with blame(f'weights of {library} cannot be converted; the file is damaged'):
        sources = {renamed(k, table): k for k in state_dict if k not in unused}
        state = {name: state_dict[source] for name, source in sources.items()}
        _join_tokens(state)
        _join_qkv(state)
        strange = sorted(sources.get(name, name) for name in state if not _KNOWN.match(name))
        if strange:
            raise UserError(f'{library}: the supernet has no part for {_list(strange)}')
        _add_biases(state)
    return {k if k.startswith('head.') else f'backbone.{k}': v for k, v in state.items()}


def _join_tokens(state: dict[str, Tensor]) -> None:
    """Make class token and registers one parameter, with shapes (1, P, C) and (1, tokens, C)."""
    for name in {'cls_token', 'pos_embed'} & set(state):
        state[name] = state[name].reshape(1, -1, state[name].shape[-1])
    bare = state.pop('registers_without_positions', None)
    if bare is not None:
        place, rest = state['pos_embed'][:, :1], state['pos_embed'][:, 1:]
        state['pos_embed'] = torch.cat([place, torch.zeros_like(bare), rest], dim=1)
    registers = state.pop('registers', bare)
    if registers is not None:
        tokens = [state[name] for name in ('cls_token',) if name in state]
        state['cls_token'] = torch.cat([*tokens, registers], dim=1)


def _join_qkv(state: dict[str, Tensor]) -> None:
    """Give ``qkv.weight`` the shape (3, Q, C), and its bias the order query, key, value."""
    for name in [name for name in state if name.endswith('attn.qkv.weight')]:
        state[name] = split_qkv(name, state[name], interleaved=False)
    for name in [name for name in state if '.attn.query.' in name]:
        parts = [state.pop(name.replace('.query.', f'.{p}.')) for p in ('query', 'key', 'value')]
        join = torch.stack if name.endswith('weight') else torch.cat
        state[name.replace('.query.', '.qkv.')] = join(parts)


def _add_biases(state: dict[str, Tensor]) -> None:
    """Add zeros where another network has no bias: all linear layers of the supernet have one."""
    for name in filter(_WITH_BIAS.match, list(state)):
        rows = state[name].shape[:-1] if name.endswith('qkv.weight') else state[name].shape[:1]
        bias = name.removesuffix('weight') + 'bias'
        if bias not in state:
            state[bias] = state[name].new_zeros(rows.numel())


def _list(names: Sequence[str]) -> str:
    return ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')
