"""Which entries of which tensors belong to a unit: a neuron, a head, or a channel of the stream.

Scores sum over these entries, and permutations move them, so both read one table.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError
from ..models import SupernetClassifier
from ..models.heads.elastic_cls_head import final_linear

KINDS = ('neurons', 'heads', 'channels')


@dataclass(frozen=True, slots=True)
class Coupling:
    """One parameter in which units of a kind lie along an axis.

    Args:
        name: Of the parameter, in the classifier.
        axis: The axis, of length ``parts`` x units x ``size``.
        parts: How many times the units follow one another: 3 in a bias of query, key and value.
        size: Consecutive entries of a unit: the width of a head.
    """

    name: str
    axis: int
    parts: int = 1
    size: int = 1

    def by_unit(self, tensor: Tensor) -> Tensor:
        """View a tensor of the parameter's shape as (units, entries of a unit)."""
        grouped = tensor.unflatten(self.axis, (self.parts, -1, self.size))
        return grouped.movedim(self.axis + 1, 0).flatten(1)

    def permuted(self, tensor: Tensor, order: Tensor) -> Tensor:
        """The same tensor with its units in another order."""
        grouped = tensor.unflatten(self.axis, (self.parts, -1, self.size))
        moved = grouped.index_select(self.axis + 1, order)
        return moved.flatten(self.axis, self.axis + 2)


def couplings(model: SupernetClassifier) -> dict[str, list[list[Coupling]]]:
    """The parameters of the units of each kind: for each block, or once for the channels.

    Raises:
        UserError: If the model has experts, a neck or a head that is not linear, or a parameter
            that is in no table.
    """
    _refuse_unordered(model)
    blocks = range(model.backbone.arch.depth)
    table = dict(
        neurons=[_neurons(f'backbone.blocks.{i}.') for i in blocks],
        heads=[_heads(f'backbone.blocks.{i}.', model.backbone.blocks[i]) for i in blocks],
        channels=[_channels(model)],
    )
    there = dict(model.named_parameters())
    known = {c.name for groups in table.values() for group in groups for c in group}
    for name in there:  # heads share the tables of positions
        if name not in known and '.rel_pos_' not in name and not name.startswith('head.'):
            raise UserError(f'the model has {name}, whose units are not known; order without it')
    return {
        kind: [[c for c in group if c.name in there] for group in groups]
        for kind, groups in table.items()
    }


def unit_counts(model: SupernetClassifier) -> dict[str, list[int]]:
    """Number of units in each group of :func:`couplings`."""
    arch = model.backbone.arch
    return dict(neurons=[*arch.hidden_dims], heads=[*arch.num_heads], channels=[arch.embed_dim])


def unit_sums(
    table: Mapping[str, list[list[Coupling]]], entries: Mapping[str, Tensor]
) -> dict[str, list[Tensor]]:
    """Sum over all entries of each unit; ``entries`` is a tensor for each parameter's name."""

    def total(group: list[Coupling]) -> Tensor:
        return torch.stack([c.by_unit(entries[c.name]).sum(1) for c in group]).sum(0)

    return {kind: [total(group) for group in groups] for kind, groups in table.items()}


def _neurons(block: str) -> list[Coupling]:
    own = ('fc1.weight', 0), ('fc1.bias', 0), ('fc2.weight', 1)
    return [Coupling(block + name, axis) for name, axis in own]


def _heads(block: str, module: torch.nn.Module) -> list[Coupling]:
    size = module.attn.head_dim
    return [
        Coupling(block + 'attn.qkv.weight', 1, size=size),  # (3, H D, C)
        Coupling(block + 'attn.qkv.bias', 0, parts=3, size=size),
        Coupling(block + 'attn.proj.weight', 1, size=size),
    ]


_NORM = ('weight', 0), ('bias', 0)
_STREAM = (  # parameters of a block that read or write the residual stream
    *((f'attn_norm.{name}', axis) for name, axis in _NORM),
    *((f'ffn_norm.{name}', axis) for name, axis in _NORM),
    ('attn.qkv.weight', 2),
    ('attn.proj.weight', 0),
    ('attn.proj.bias', 0),
    ('attn_scale', 0),
    ('fc1.weight', 1),
    ('fc2.weight', 0),
    ('fc2.bias', 0),
    ('mlp_scale', 0),
)
_ENDS = (
    ('patch_embed.weight', 0),
    ('patch_embed.bias', 0),
    ('cls_token', 2),
    ('pos_embed', 2),
    *((f'pre_norm.{name}', axis) for name, axis in _NORM),
    *((f'norm.{name}', axis) for name, axis in _NORM),
)


def _channels(model: SupernetClassifier) -> list[Coupling]:
    depth, width = model.backbone.arch.depth, model.backbone.arch.embed_dim
    names = [*_ENDS, *((f'blocks.{i}.{n}', axis) for i in range(depth) for n, axis in _STREAM)]
    found = [Coupling(f'backbone.{name}', axis) for name, axis in names]
    layer = None if model.head is None else final_linear(model.head)
    if layer is not None:
        name = next(name for name, p in model.named_parameters() if p is layer.weight)
        found.append(Coupling(name, 1, parts=layer.weight.shape[1] // width))
    if model.feature_map is not None:  # from features to those of the same network at full size
        parts = model.backbone.feature_parts
        ends = ('weight', 0), ('weight', 1), ('bias', 0)
        found += [Coupling(f'feature_map.{name}', axis, parts) for name, axis in ends]
    return found


def _refuse_unordered(model: SupernetClassifier) -> None:
    if model.router is not None or model.backbone.num_experts:
        raise UserError('the model has experts, which know the order; order before they are added')
    neck = model.neck if model.with_neck else None
    odd = neck if neck is not None and any(True for _ in neck.parameters()) else None
    if model.head is not None and final_linear(model.head) is None:
        odd = model.head
    if odd is not None:
        raise UserError(
            f'the model has a {type(odd).__name__}, whose channels are not known; order it with '
            'a linear head (tas_lora.ElasticClsHead) or none'
        )
