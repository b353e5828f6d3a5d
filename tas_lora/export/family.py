"""Write several subnets of one supernet as small deltas on its weights."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ..atomic_files import write_together
from ..errors import UserError
from ..models import SupernetClassifier
from ..models.export import (
    PLAIN_LINEARS,
    check_exportable,
    describe_export,
    plain_network,
    sliced_state_dict,
)
from ..models.layers import MoLELinear
from ..search.complexity import count_params
from ..structures import Subnet
from .parity import largest_difference, supernet_logits
from .source import PLAIN_VIT, standing_alone
from .vit_family import FORMAT, PARENT, is_name, load_family

WEIGHTS, DESCRIPTION, MODULE = 'family.safetensors', 'family.json', 'vit_family.py'
_SIZES = ('embed_dim', 'num_heads', 'hidden_dims')


def export_family(
    model: SupernetClassifier,
    subnets: Mapping[str, Subnet],
    out_dir: str | Path,
    classes: Sequence[str] | None = None,
    dataset: Mapping | None = None,
) -> Path:
    """Write the supernet, its experts, and the gates of each subnet, in one file of weights.

    A subnet's delta in a layer is sum_k p_k U_k D_k / r on its slice: as large as the layer. But
    slices follow from the sizes, and all subnets share the factors U and D. So all that is a
    subnet's own are its gates p, (L, 4, K): they are the smallest exact form of its weights, some
    hundred numbers. ``vit_family.py``, written next to the file, merges them at run time.

    The whole supernet without experts is a member also, called 'parent'.

    Args:
        model: A loaded supernet, with or without experts.
        subnets: Members by name: letters, digits, dashes and underscores.
        out_dir: Folder to write to; created if missing.
        classes, dataset: As in :func:`~tas_lora.export_subnet`.

    Returns:
        ``out_dir``.

    Raises:
        UserError: As :func:`~tas_lora.export_subnet`; or if a name is not valid, or the subnets
            have patches of several sizes.
    """
    check_exportable(model, classes)
    parent = _parent_of(model, subnets)
    weights, members = {}, {}
    active = model.subnet
    for name, subnet in subnets.items():
        gates = _gates_of(model, subnet)
        network = plain_network(subnet, model.image_spec, model.backbone.out_type)
        members[name] = {size: network[size] for size in _SIZES} | dict(subnet=subnet.to_dict())
        if gates is not None:
            weights[f'gates.{name}'] = gates
            members[name]['num_experts'] = gates.shape[-1]
    model.unmerge_experts()
    own = sliced_state_dict(model, parent)
    weights |= {f'parent.{name}': value for name, value in own.items()}
    experts = _experts(model) if any('num_experts' in each for each in members.values()) else {}
    for name, factors in experts.items():
        weights |= {f'experts.{name}.{key}': value for key, value in factors.items()}
    model.set_subnet(active)
    content = save({name: value.detach().cpu().contiguous() for name, value in weights.items()})
    description = describe_export(model, parent, classes, dataset) | dict(
        format=FORMAT,
        block_order=list(model.backbone.block_order),
        qkv_bias_by_part=model.backbone.style.qkv_bias_by_part,
        experts={name: [*factors['down'].shape[:2]] for name, factors in experts.items()},
        members=members,
        weights_sha256=hashlib.sha256(content).hexdigest(),
    )
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    files = {
        WEIGHTS: content,
        DESCRIPTION: json.dumps(description, indent=2) + '\n',
        MODULE: standing_alone(Path(__file__).with_name(MODULE), ''),
        PLAIN_VIT.name: PLAIN_VIT.read_bytes(),
    }
    write_together({out_dir / name: content for name, content in files.items()})
    return out_dir


@torch.no_grad()
def family_differences(
    model: SupernetClassifier, subnets: Mapping[str, Subnet], folder: str | Path, images: Tensor
) -> dict[str, float]:
    """Largest difference of the logits of each member, and of the parent, from the supernet's.

    Where the logits' standard deviation is below 1, in units of it.
    """
    family, device = load_family(folder), model.backbone.pos_embed.device
    logits, features = model.parent_outputs(images.to(device), _parent_of(model, subnets))
    expected = {PARENT: (features if logits is None else logits).cpu()}
    expected |= {name: supernet_logits(model, subnet, images) for name, subnet in subnets.items()}
    found = {}
    for name, wanted in expected.items():
        family.set_subnet(name)
        scale = wanted.std(0).mean().clamp(max=1)
        found[name] = largest_difference(family(images), wanted) / float(scale)
    return found


def bytes_of_single_exports(model: SupernetClassifier, subnets: Mapping[str, Subnet]) -> int:
    """Bytes of the weights of all members, and of the parent, exported one by one."""
    all_ = [*subnets.values(), _parent_of(model, subnets)]
    return sum(4 * count_params(subnet, **model.image_spec) for subnet in all_)


def _parent_of(model: SupernetClassifier, subnets: Mapping[str, Subnet]) -> Subnet:
    """The whole supernet at the members' patch size."""
    for name in subnets:
        if not is_name(name):
            raise UserError(
                f'a member is called {name!r}; use letters, digits, dashes and underscores, not '
                f'{PARENT!r}, which is the whole network: rename its file'
            )
    sizes = {model.backbone.patch_size_of(subnet) for subnet in subnets.values()}
    if len(sizes) > 1:
        raise UserError(
            f'the subnets have patches of {sorted(sizes)} pixels; members of a family share one'
        )
    several = len(model.backbone.patch_sizes) > 1 and sizes
    return replace(model.backbone.arch, patch_size=sizes.pop()) if several else model.backbone.arch


@torch.no_grad()
def _gates_of(model: SupernetClassifier, subnet: Subnet) -> Tensor | None:
    """Gates of a subnet, (L, 4, K); None if it runs without experts."""
    model.set_subnet(subnet)
    model.merge_experts()  # not for a parent that is kept
    return model.router(subnet).float() if model.is_merged else None


def _experts(model: SupernetClassifier) -> dict[str, dict[str, Tensor]]:
    """Factors of each layer with experts, (K, r, I) and (K, O, r), scaled as its output is."""
    found = {}
    for i, block in enumerate(model.backbone.blocks):
        arch = model.backbone.arch
        widths = arch.embed_dim, arch.num_heads[i], arch.hidden_dims[i]
        scales = {'attn.proj': block.attn_scale, 'fc2': block.mlp_scale}
        for name, (layer, *_) in zip(PLAIN_LINEARS, block.sliced_linears(*widths), strict=True):
            if isinstance(layer, MoLELinear):
                up, scale = layer.lora_b.flatten(1, -2), scales.get(name)
                up = up if scale is None else up * scale[:, None]
                found[f'blocks.{i}.{name}'] = dict(down=layer.lora_a, up=up)
    return found
