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
from ..structures import Subnet
from .classifiers.supernet_classifier import SupernetClassifier
from .plain_vit import FORMAT, POOLINGS
from .preparation import describe


def standalone_state_dict(model: SupernetClassifier, subnet: Subnet) -> dict[str, Tensor]:
    """Weights of only ``subnet``, with merged experts, by the names of ``PlainViT``."""
    active = model.subnet
    model.set_subnet(subnet)
    width, backbone = subnet.embed_dim, model.backbone
    state = {
        'patch_embed.weight': backbone.patch_embed.sliced_weight(
            width, backbone.patch_size_of(subnet)
        ),
        'patch_embed.bias': backbone.patch_embed.bias[:width],
        'cls_token': backbone.cls_token[..., :width],
        'pos_embed': backbone.positions(subnet),
        'norm.weight': backbone.norm.weight[:width],
        'norm.bias': backbone.norm.bias[:width],
        'head.weight': model.head.fc.weight[:, :width],
        'head.bias': model.head.fc.bias,
    }
    with torch.no_grad():
        model.merge_experts()
        for i, (block, widths) in enumerate(backbone.active_blocks(subnet)):
            state |= {f'blocks.{i}.{k}': v for k, v in _block_state(block, widths).items()}
    model.set_subnet(active)  # also drops the merged weights
    return {name: value.detach().cpu().float().clone() for name, value in state.items()}


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
    _check_parts(model)
    count = model.head.num_classes
    if classes is not None and len(classes) != count:
        raise UserError(f'there are {len(classes)} names of classes for {count} logits; name each')
    state = standalone_state_dict(model, subnet)
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    weights = save(state)
    digest = dict(weights_sha256=hashlib.sha256(weights).hexdigest())
    names = {} if classes is None else dict(classes=list(classes))
    text = json.dumps(_description(model, subnet, dataset) | names | digest, indent=2) + '\n'
    write_together({out_dir / 'weights.safetensors': weights, out_dir / 'architecture.json': text})
    return out_dir


def _check_parts(model: SupernetClassifier) -> None:
    backbone, head = model.backbone, model.head
    linear = hasattr(head, 'fc')  # as in MMPretrain's LinearClsHead
    at_the_end = backbone.out_indices == (backbone.arch.depth - 1,)
    if not (backbone.out_type in POOLINGS and at_the_end and linear and not model.with_neck):
        raise UserError(
            'a supernet to export from has a backbone with the default out_indices and out_type '
            f'{" or ".join(POOLINGS)}, no neck, and a linear head; this one has '
            f'{backbone.out_indices}, {backbone.out_type}, {"a" if model.with_neck else "no"} neck '
            f'and {type(head).__name__}'
        )


def _block_state(block, widths: tuple[int, int, int]) -> dict[str, Tensor]:
    embed_dim = widths[0]
    state = {
        'attn_norm.weight': block.attn_norm.weight[:embed_dim],
        'attn_norm.bias': block.attn_norm.bias[:embed_dim],
        'ffn_norm.weight': block.ffn_norm.weight[:embed_dim],
        'ffn_norm.bias': block.ffn_norm.bias[:embed_dim],
        'attn.key_rows': block.attn.rel_pos_k.vertical,
        'attn.key_columns': block.attn.rel_pos_k.horizontal,
        'attn.value_rows': block.attn.rel_pos_v.vertical,
        'attn.value_columns': block.attn.rel_pos_v.horizontal,
    }
    names = ('attn.qkv', 'attn.proj', 'fc1', 'fc2')
    for name, (layer, out_features, in_features) in zip(
        names, block.sliced_linears(*widths), strict=True
    ):
        state[f'{name}.weight'] = layer.sliced_weight(out_features, in_features)
        state[f'{name}.bias'] = layer.bias[: layer.parts * out_features]
    return state


def _description(model: SupernetClassifier, subnet: Subnet, dataset: Mapping | None) -> dict:
    """Content of ``architecture.json``: how to build the network and prepare its images."""
    spec = subnet.image_spec_in(model.image_spec)
    network = dict(
        embed_dim=subnet.embed_dim,
        num_heads=list(subnet.num_heads),
        hidden_dims=list(subnet.hidden_dims),
        **spec,
        pooling=model.backbone.out_type,
    )
    return dict(
        format=FORMAT,
        network=network,
        subnet=subnet.to_dict(),
        preprocess=describe(dataset or {}, model.data_preprocessor, spec['img_size']),
        params=count_params(subnet, **spec),
        flops=count_flops(subnet, **spec),
    )
