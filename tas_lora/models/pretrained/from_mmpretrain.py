"""Read MMPretrain's ``VisionTransformer``, alone or in an ``ImageClassifier``."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from mmpretrain.models import ImageClassifier
from mmpretrain.models.heads import MultiLabelLinearClsHead
from mmpretrain.models.utils import resize_pos_embed
from torch import Tensor, nn

from ...errors import UserError, blame
from ..foreign_names import from_mmpretrain
from ..heads.elastic_cls_head import final_linear
from ..safe_load import read_state_dict
from .original import (
    Facts,
    Original,
    activation,
    check_parts,
    check_patches,
    common,
    config_of,
    image_side,
    is_none,
    kind,
    norm_eps,
    side_of,
)

_LIBRARY = 'MMPretrain'


def read(model: nn.Module, img_size: int | None) -> Original:
    """Read a ``VisionTransformer``, or a classifier around it with one linear layer.

    Raises:
        UserError: If a part of it is not supported.
    """
    is_classifier = isinstance(model, ImageClassifier)
    vit = model.backbone if is_classifier else model
    check_parts(_LIBRARY, _classifier(model) if is_classifier else ())
    check_parts(_LIBRARY, _network(vit))
    for i, layer in enumerate(vit.layers):
        check_parts(_LIBRARY, _layer(layer, f'layers[{i}]'))
    check_patches(vit.patch_embed.projection, _LIBRARY, 'patch_embed.projection')
    own = side_of(vit.img_size, 'img_size', _LIBRARY)
    side = image_side(img_size, own, vit.patch_embed.projection, _LIBRARY)
    state = dict(model.state_dict())
    if side != own:
        name = 'backbone.pos_embed' if is_classifier else 'pos_embed'
        state[name] = _positions(vit, side)
    facts = _facts(vit, side, getattr(model, 'data_preprocessor', None))
    weights, head = from_mmpretrain(state), model.head if is_classifier else None
    if isinstance(head, MultiLabelLinearClsHead):
        kept = dict(type='mmpretrain.MultiLabelLinearClsHead', thr=head.thr, topk=head.topk)
        facts = replace(facts, head=kept)

    def output(images: Tensor) -> Tensor:
        return vit(images)[-1] if head is None else model(images, mode='tensor')

    config = config_of(facts, weights, _LIBRARY)
    return Original(config, weights, output, None if head is None else final_linear(head))


def open_model(name: str, checkpoint: str | Path | None) -> nn.Module:
    """Build a model of MMPretrain's by name, with the weights of ``checkpoint`` or its own.

    Raises:
        UserError: If there is no such model, or its weights cannot be had.
    """
    from mmpretrain import get_model
    from mmpretrain.apis import ModelHub

    with blame(f'MMPretrain cannot build {name!r}'):
        model = get_model(name, pretrained=False)
        read(model, None)  # refuses its parts before its weights are fetched
        checkpoint = checkpoint or ModelHub.get(name).weights
    if checkpoint is None:
        raise UserError(f'MMPretrain has no weights of {name}; give a file as checkpoint')
    return load(model, read_state_dict(checkpoint), checkpoint, name)


def load(model: nn.Module, state: dict[str, Tensor], file: str | Path, name: str = '') -> nn.Module:
    """Load weights of the same model."""
    with blame(f'{file} does not fit {name or kind(model)} of MMPretrain'):
        model.load_state_dict(state)
    return model


def _classifier(model: nn.Module) -> Iterator[tuple[str, object, bool, str]]:
    yield 'neck', kind(model.neck) if model.with_neck else None, not model.with_neck, 'none'
    right = model.head is None or final_linear(model.head) is not None
    yield 'head', kind(model.head), right, 'a head of one linear layer, or none'
    vit = model.backbone
    yield 'backbone', kind(vit), kind(vit) == 'VisionTransformer', 'a VisionTransformer'


def _network(vit: nn.Module) -> Iterator[tuple[str, object, bool, str]]:
    """Parts of the network outside of its layers that change its output."""
    right = type(vit).__name__ == 'VisionTransformer'
    yield 'the model', kind(vit), right, 'those of VisionTransformer'
    yield 'number of layers', len(vit.layers), len(vit.layers) > 0, 'one or more'
    patches, pooled = vit.patch_embed, ('cls_token', 'avg_featmap')
    yield 'patch_embed', kind(patches), kind(patches) == 'PatchEmbed', 'a PatchEmbed'
    yield 'patch_embed.norm', kind(patches.norm), patches.norm is None, 'none'
    yield 'out_type', repr(vit.out_type), vit.out_type in pooled, "'cls_token' or 'avg_featmap'"
    last = len(vit.layers) - 1
    yield 'out_indices', vit.out_indices, list(vit.out_indices)[-1] == last, 'the last layer'
    both = vit.final_norm and vit.out_type == 'avg_featmap'
    yield 'final_norm', "True with out_type 'avg_featmap'", not both, 'one final norm'


def _layer(layer: nn.Module, place: str) -> Iterator[tuple[str, object, bool, str]]:
    """Parts of a layer that change its output."""
    attn, ffn = layer.attn, layer.ffn
    right = kind(layer) == 'TransformerEncoderLayer'
    yield place, kind(layer), right, 'layers: attention, and then an MLP'
    yield f'{place}.attn', kind(attn), kind(attn) == 'MultiheadAttention', 'plain attention'
    yield f'{place}.attn.v_shortcut', attn.v_shortcut, not attn.v_shortcut, 'none'
    yield f'{place}.ffn', kind(ffn), kind(ffn) == 'FFN', 'an MLP of two layers'
    right = ffn.num_fcs == 2 and ffn.add_identity
    yield f'{place}.ffn', f'{ffn.num_fcs} layers', right, 'an MLP of two layers and a shortcut'
    scaled = [not is_none(attn.gamma1), not is_none(ffn.gamma2)]
    yield f'{place}.gamma1 and gamma2', scaled, scaled[0] == scaled[1], 'both or none'


def _facts(vit: nn.Module, side: int, data: nn.Module | None) -> Facts:
    norms = {
        f'layers[{i}].{name}': getattr(layer, name)
        for i, layer in enumerate(vit.layers)
        for name in ('ln1', 'ln2')
    }
    norms |= {name: getattr(vit, name) for name in ('ln1', 'ln2') if hasattr(vit, name)}
    if not is_none(vit.pre_norm):
        norms['pre_norm'] = vit.pre_norm
    acts = (
        activation(layer.ffn.layers[0][1], _LIBRARY, f'layers[{i}].ffn')
        for i, layer in enumerate(vit.layers)
    )
    pooled = vit.out_type == 'avg_featmap'
    moments = [data.mean, data.std] if getattr(data, '_enable_normalize', False) else [None, None]
    return Facts(
        num_heads=[layer.attn.num_heads for layer in vit.layers],
        img_size=side,
        out_type=vit.out_type,
        norm_eps=norm_eps(norms, _LIBRARY),
        act=common(acts, 'the activation', _LIBRARY),
        final_norm='pooled' if pooled else 'tokens' if vit.final_norm else 'none',
        mean=None if moments[0] is None else moments[0].flatten().tolist(),
        std=None if moments[1] is None else moments[1].flatten().tolist(),
        to_rgb=getattr(data, 'to_rgb', True),
    )


def _positions(vit: nn.Module, side: int) -> Tensor:
    """Positions for images of another size, resized as in the forward of ``VisionTransformer``."""
    new = (side // vit.patch_embed.projection.kernel_size[0],) * 2
    own = vit.patch_resolution
    return resize_pos_embed(vit.pos_embed, own, new, vit.interpolate_mode, vit.num_extra_tokens)
