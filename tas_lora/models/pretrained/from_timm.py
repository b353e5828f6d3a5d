"""Read timm's ``VisionTransformer``."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from ...errors import UserError, blame
from ..foreign_names import from_timm
from ..safe_load import read_state_dict
from .original import (
    Facts,
    Original,
    activation,
    check_parts,
    check_patches,
    common,
    config_of,
    head_part,
    image_side,
    is_none,
    kind,
    norm_eps,
    quiet,
    side_of,
)

_POOLINGS = dict(token='cls_token', avg='avg_featmap')


def read(vit: nn.Module, img_size: int | None) -> Original:
    """Read a ``VisionTransformer``, which is changed if ``img_size`` is another than its own.

    Raises:
        UserError: If a part of it is not supported.
    """
    _check(vit)
    own = side_of(vit.patch_embed.img_size, 'img_size', 'timm')
    side = image_side(img_size, own, vit.patch_embed.proj, 'timm')
    if side != own:
        vit.set_input_size(img_size=(side, side))
    facts, weights = _facts(vit, side), from_timm(vit.state_dict())
    head = None if is_none(vit.head) else vit.head
    return Original(config_of(facts, weights, 'timm'), weights, vit, head)


def open_model(name: str, checkpoint: str | Path | None, img_size: int | None = None) -> nn.Module:
    """Build a model of timm's by name, with the weights of ``checkpoint`` or those of the hub.

    For ``img_size`` at once: positions of a file that is of that size stay as they are.

    Raises:
        UserError: If there is no such model, or its weights cannot be had.
    """
    import timm

    with blame(f'timm cannot build {name!r}'), torch.device('meta'):
        _check(timm.create_model(name))  # before its weights are fetched
    if checkpoint is None:
        advice = 'download their file where there is a connection, and give it as checkpoint'
        with blame(f'the weights of timm:{name} cannot be fetched; {advice}'), quiet():
            return timm.create_model(name, pretrained=True)
    state = read_state_dict(checkpoint)
    head = state.get('head.weight')
    size = {} if img_size is None else dict(img_size=img_size)
    with blame(f'timm cannot build {name!r} for this file'):
        vit = timm.create_model(name, num_classes=0 if head is None else len(head), **size)
    return load(vit, state, checkpoint)


def load(vit: nn.Module, state: dict[str, Tensor], file: str | Path) -> nn.Module:
    """Load weights as timm loads its own, positions of other sizes included.

    Patches of another size are refused: timm would resample them.
    """
    from timm.models.vision_transformer import checkpoint_filter_fn

    vit.pretrained_cfg = getattr(vit, 'pretrained_cfg', None) or {}  # timm reads it
    own = vit.patch_embed.proj.kernel_size
    for name, value in state.items():
        if value.dim() == 4 and value.shape[2:] != own:  # the kernel, the only such weight
            raise UserError(
                f'{file} does not fit {_name(vit)} of timm: {name} has patches of '
                f'{tuple(value.shape[2:])}, the model of {own}; name the model of this file'
            )
    with blame(f'{file} does not fit {_name(vit)} of timm'), quiet():
        vit.load_state_dict(checkpoint_filter_fn(state, vit, adapt_layer_scale=True))
    return vit


def _check(vit: nn.Module) -> None:
    """Refuse a network with a part that a supernet lacks."""
    check_parts('timm', _network(vit))
    for i, block in enumerate(vit.blocks):
        check_parts('timm', _block(block, f'blocks[{i}]'))
    check_patches(vit.patch_embed.proj, 'timm', 'patch_embed.proj')


def _name(vit: nn.Module) -> str:
    return vit.pretrained_cfg.get('architecture', kind(vit))


def _network(vit: nn.Module) -> Iterator[tuple[str, object, bool, str]]:
    """Parts of the network outside of its blocks that change its output."""
    yield 'the model', kind(vit), kind(vit) == 'VisionTransformer', 'those of VisionTransformer'
    yield 'number of blocks', len(vit.blocks), len(vit.blocks) > 0, 'one or more'
    patches = vit.patch_embed
    right = kind(patches) in ('PatchEmbed', 'PatchEmbedWithSize')
    yield 'patch_embed', kind(patches), right, 'a PatchEmbed'
    yield 'patch_embed.norm', kind(patches.norm), is_none(patches.norm), 'none'
    yield 'pos_embed', vit.pos_embed, vit.pos_embed is not None, 'a learned one'
    yield 'attn_pool', kind(vit.attn_pool), vit.attn_pool is None, 'pooling by token or mean'
    yield 'global_pool', repr(vit.global_pool), vit.global_pool in _POOLINGS, "'token' or 'avg'"
    included = vit.pool_include_prefix and vit.global_pool == 'avg' and vit.num_prefix_tokens > 0
    yield 'pool_include_prefix', True, not included, 'means over patches alone'
    both = not is_none(vit.norm) and not is_none(vit.fc_norm)
    yield 'fc_norm', f'{kind(vit.fc_norm)} after a norm', not both, 'one final norm'
    yield head_part(vit.head, 'timm', 'head')


def _block(block: nn.Module, place: str) -> Iterator[tuple[str, object, bool, str]]:
    """Parts of a block that change its output."""
    yield place, kind(block), kind(block) == 'Block', 'Blocks: attention, and then an MLP'
    attn, mlp = block.attn, block.mlp
    yield f'{place}.attn', kind(attn), kind(attn) == 'Attention', 'plain attention'
    for name in ('q_norm', 'k_norm', 'norm', 'gate'):  # of some releases
        part = getattr(attn, name, None)
        yield f'{place}.attn.{name}', kind(part), is_none(part), 'none'
    own = attn.head_dim**-0.5
    yield f'{place}.attn.scale', attn.scale, attn.scale == own, f'{own:.4g} here'
    yield f'{place}.mlp', kind(mlp), kind(mlp) == 'Mlp', 'an MLP of two layers'
    yield f'{place}.mlp.fc1', kind(mlp.fc1), isinstance(mlp.fc1, nn.Linear), 'linear layers'
    yield f'{place}.mlp.norm', kind(mlp.norm), is_none(mlp.norm), 'none'
    scales = sorted({kind(block.ls1), kind(block.ls2)})
    right = scales in (['Identity'], ['LayerScale'])
    yield f'{place}.ls1 and ls2', ' and '.join(scales), right, 'LayerScale on both branches or none'


def _facts(vit: nn.Module, side: int) -> Facts:
    norms = {
        f'blocks[{i}].{name}': getattr(block, name)
        for i, block in enumerate(vit.blocks)
        for name in ('norm1', 'norm2')
    }
    for name in ('norm_pre', 'norm', 'fc_norm'):
        if not is_none(getattr(vit, name)):
            norms[name] = getattr(vit, name)
    places = [('tokens', vit.norm), ('pooled', vit.fc_norm)]
    final = next((place for place, norm in places if not is_none(norm)), 'none')
    acts = (activation(b.mlp.act, 'timm', f'blocks[{i}].mlp.act') for i, b in enumerate(vit.blocks))
    data = getattr(vit, 'pretrained_cfg', None) or {}
    return Facts(
        num_heads=[block.attn.num_heads for block in vit.blocks],
        img_size=side,
        out_type=_POOLINGS[vit.global_pool],
        norm_eps=norm_eps(norms, 'timm'),
        act=common(acts, 'the activation', 'timm'),
        final_norm=final,
        prefix_positions=not vit.no_embed_class,
        mean=data.get('mean'),
        std=data.get('std'),
        scale=255.0,
    )
