"""Cut a subnet out of its supernet: slice, merge, and write it as an ordinary network."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ..atomic_files import write_together
from ..errors import UserError
from ..search.complexity import count_flops, count_params
from ..structures import Subnet, ViTStyle
from .classifiers.supernet_classifier import SupernetClassifier
from .heads.elastic_cls_head import final_linear
from .layers import ElasticBlock
from .layers.elastic import slice_parts
from .plain_vit import FORMAT, POOLINGS
from .preparation import describe

# Fields of a ``ViTStyle`` that a ``PlainViT`` has: LayerScale is in its weights.
PLAIN_STYLE = ('num_prefix_tokens', 'prefix_positions', 'pre_norm', 'final_norm', 'norm_eps', 'act')

# The linear layers of a block, in the order of ``LAYER_KINDS``.
PLAIN_LINEARS = ('attn.qkv', 'attn.proj', 'fc1', 'fc2')


def plain_network(subnet: Subnet, image_spec: Mapping, pooling: str) -> dict:
    """Arguments of ``PlainViT`` for ``subnet``, all of them JSON values.

    Those of AutoFormer's style are left out, so that its networks are described as they always
    were.

    Args:
        subnet: The architecture.
        image_spec: ``image_spec`` of a :class:`SupernetClassifier`.
        pooling: ``out_type`` of its backbone.
    """
    spec = subnet.image_spec_in(image_spec)
    style, usual = ViTStyle.coerce(spec.pop('style', None)).to_dict(), ViTStyle().to_dict()
    spec.pop('feature_parts', None)  # follows from the pooling
    return dict(
        embed_dim=subnet.embed_dim,
        num_heads=list(subnet.num_heads),
        hidden_dims=list(subnet.hidden_dims),
        **spec,
        pooling=pooling,
        **{name: style[name] for name in PLAIN_STYLE if style[name] != usual[name]},
    )


def standalone_state_dict(model: SupernetClassifier, subnet: Subnet) -> dict[str, Tensor]:
    """Weights of only ``subnet``, with merged experts, by the names of ``PlainViT``.

    Factors of LayerScale are multiplied into the layers whose output they scale.
    """
    active = model.subnet
    model.set_subnet(subnet)
    with torch.no_grad():
        model.merge_experts()
        state = sliced_state_dict(model, subnet)
    model.set_subnet(active)  # also drops the merged weights
    return state


@torch.no_grad()
def sliced_state_dict(model: SupernetClassifier, subnet: Subnet) -> dict[str, Tensor]:
    """:func:`standalone_state_dict` with the experts as they are: merged for ``subnet``, or not."""
    state = _outer_state(model, subnet)
    for i, (block, widths) in enumerate(model.backbone.active_blocks(subnet)):
        state |= {f'blocks.{i}.{k}': v for k, v in _block_state(block, widths).items()}
    return {name: value.detach().cpu().float().clone() for name, value in state.items()}


def _outer_state(model: SupernetClassifier, subnet: Subnet) -> dict[str, Tensor]:
    """All but the blocks."""
    width, backbone = subnet.embed_dim, model.backbone
    state = {
        'patch_embed.weight': backbone.patch_embed.sliced_weight(
            width, backbone.patch_size_of(subnet)
        ),
        'patch_embed.bias': backbone.patch_embed.bias[:width],
        'pos_embed': backbone.positions(subnet),
    }
    if model.head is not None:
        linear, parts = final_linear(model.head), backbone.feature_parts
        state['head.weight'] = slice_parts(linear.weight, width * parts, parts)
        state['head.bias'] = linear.bias
    if backbone.style.num_prefix_tokens:
        state['cls_token'] = backbone.cls_token[..., :width]
    for name in ('pre_norm', 'norm'):  # without parameters where there is none
        for key, value in getattr(backbone, name).named_parameters():
            state[f'{name}.{key}'] = value[:width]
    return state


def export_subnet(
    model: SupernetClassifier,
    subnet: Subnet | dict,
    out_dir: str | Path,
    classes: Sequence[str] | None = None,
    dataset: Mapping | None = None,
) -> Path:
    """Write ``subnet`` as ``weights.safetensors`` and ``architecture.json``.

    The two need nothing of the supernet: ``tas_lora.models.plain_vit.load_plain_vit`` reads them
    into plain torch layers.

    Args:
        model: A loaded supernet, with or without experts.
        subnet: The subnet to cut out, or its dict.
        out_dir: Folder to write to; created if missing.
        classes: Names of the classes for the JSON, in the order of the logits.
        dataset: Config of the test dataset, the innermost one if they are nested. Its ``pipeline``
            gives the JSON's ``preprocess``.

    Returns:
        ``out_dir``.

    Raises:
        UserError: If ``subnet`` does not fit the supernet or belongs to no group of experts, if
            the supernet has parts that a ``PlainViT`` lacks, or if ``classes`` has another length
            than the logits.
    """
    subnet = Subnet.coerce(subnet)
    check_exportable(model, classes)
    state = standalone_state_dict(model, subnet)
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    weights = save(state)
    digest = dict(weights_sha256=hashlib.sha256(weights).hexdigest())
    text = json.dumps(describe_export(model, subnet, classes, dataset) | digest, indent=2) + '\n'
    write_together({out_dir / 'weights.safetensors': weights, out_dir / 'architecture.json': text})
    return out_dir


def check_exportable(model: SupernetClassifier, classes: Sequence[str] | None) -> None:
    """Raise :class:`UserError` as :func:`export_subnet` does, except about the subnet."""
    backbone, head = model.backbone, model.head
    linear = head is None or final_linear(head) is not None
    at_the_end = backbone.out_indices == (backbone.arch.depth - 1,)
    if not (backbone.out_type in POOLINGS and at_the_end and linear and not model.with_neck):
        raise UserError(
            'a supernet to export from has a backbone with the default out_indices and out_type '
            f'{" or ".join(POOLINGS)}, no neck, and a linear head or none; this one has '
            f'{backbone.out_indices}, {backbone.out_type}, {"a" if model.with_neck else "no"} neck '
            f'and {type(head).__name__}'
        )
    if classes is not None and len(classes) != model.num_classes:
        raise UserError(
            f'there are {len(classes)} names of classes for {model.num_classes} logits; name each'
        )


def _block_state(block: ElasticBlock, widths: tuple[int, int, int]) -> dict[str, Tensor]:
    """Weights of a block at its (embed_dim, num_heads, hidden_dim), by ``PlainViT``'s names."""
    embed_dim, state = widths[0], {}
    for name in ('attn_norm', 'ffn_norm'):
        for key, value in getattr(block, name).named_parameters():
            state[f'{name}.{key}'] = value[:embed_dim]
    if block.attn.has_tables:
        for name, table in (('key', block.attn.rel_pos_k), ('value', block.attn.rel_pos_v)):
            state[f'attn.{name}_rows'] = table.vertical
            state[f'attn.{name}_columns'] = table.horizontal
    layers = zip(PLAIN_LINEARS, block.sliced_linears(*widths), strict=True)
    for name, (layer, out_features, in_features) in layers:
        state[f'{name}.weight'] = layer.sliced_weight(out_features, in_features)
        state[f'{name}.bias'] = layer.sliced_bias(out_features)
    for name, scale in (('attn.proj', block.attn_scale), ('fc2', block.mlp_scale)):
        if scale is not None:
            state[f'{name}.weight'] = state[f'{name}.weight'] * scale[:embed_dim, None]
            state[f'{name}.bias'] = state[f'{name}.bias'] * scale[:embed_dim]
    return state


def describe_export(
    model: SupernetClassifier,
    subnet: Subnet,
    classes: Sequence[str] | None = None,
    dataset: Mapping | None = None,
) -> dict:
    """Content of ``architecture.json``: how to build the network and prepare its images."""
    spec, names = model.image_spec, {} if classes is None else dict(classes=list(classes))
    return dict(
        format=FORMAT,
        network=plain_network(subnet, spec, model.backbone.out_type),
        subnet=subnet.to_dict(),
        **_problem(model),
        preprocess=describe(dataset or {}, model.data_preprocessor, spec['img_size']),
        params=count_params(subnet, **spec),
        flops=count_flops(subnet, **spec),
        **names,
    )


def _problem(model: SupernetClassifier) -> dict:
    """What the logits mean, in the terms of Hugging Face; for several labels the threshold, too.

    Without a head there are none.
    """
    if model.head is None:
        return {}
    if not model.is_multi_label:
        return dict(problem_type='single_label_classification')
    threshold = 0.5 if model.head.thr is None else model.head.thr
    return dict(problem_type='multi_label_classification', threshold=threshold)
