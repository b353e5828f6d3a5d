"""What it costs to make one dimension of a supernet smaller: accuracy lost, work saved."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import gcd

from torch import Tensor

from ..errors import UserError
from ..models import SupernetClassifier
from ..search import count_flops, count_params
from ..structures import Subnet, ratio_of
from .outputs import damage_of, labels_of, outputs

DIMENSIONS = ('neurons', 'heads', 'depth', 'width')
COSTS = dict(macs=count_flops, params=count_params)
_LEAST = dict(neurons=0.25, heads=0.5, depth=0.5, width=0.5)  # share of the original
_MOST_CHOICES = 6  # smaller ones of a dimension


def smaller_choices(model: SupernetClassifier, multiple: int = 32) -> dict[str, list[int]]:
    """Sizes to try in each dimension, the largest first, without the original's.

    Args:
        model: The supernet; all of its blocks must have the same widths.
        multiple: Of hidden and embedding channels, and of the width of all heads together.

    Returns:
        For each of :data:`DIMENSIONS` up to six sizes, at least a quarter of the hidden neurons
        and half of the others; empty if no multiple is between.
    """
    arch, head_dim = model.backbone.arch, model.backbone.image_spec['head_dim']
    if len(model.backbone.patch_sizes) > 1:
        raise UserError(
            f'the supernet has patches of {list(model.backbone.patch_sizes)} pixels, and no space '
            'is proposed for several; give patch_size of the backbone as one number'
        )
    if len(set(arch.num_heads)) > 1 or len(set(arch.hidden_dims)) > 1:
        raise UserError(
            'the blocks of the supernet differ in heads or MLP width, and a space has the same '
            'choices for all; order a supernet of equal blocks'
        )
    steps = dict(
        neurons=(arch.hidden_dims[0], multiple),
        heads=(arch.num_heads[0], multiple // gcd(multiple, head_dim)),
        depth=(arch.depth, 1),
        width=(arch.embed_dim, multiple),
    )
    return {name: _multiples(*steps[name], _LEAST[name]) for name in DIMENSIONS}


def _multiples(full: int, step: int, least: float) -> list[int]:
    """At most six multiples of ``step`` from ``least * full`` to below ``full``, evenly spread."""
    found = [n for n in range(step, full, step) if n >= least * full]
    count = min(_MOST_CHOICES, len(found))
    even = [full - (full - found[0]) * (i + 1) / count for i in range(count)]
    return sorted({round(n / step) * step for n in even} & set(found), reverse=True)


def shrunk(model: SupernetClassifier, dimension: str, size: int) -> Subnet:
    """The supernet's subnet with one dimension smaller, all others as they are.

    The MLPs of a narrower subnet keep their hidden neurons.
    """
    backbone, arch = model.backbone, model.backbone.arch
    if dimension == 'depth':
        return backbone.run_at(size)
    if dimension == 'heads':
        return replace(arch, num_heads=(size,) * arch.depth)
    if dimension == 'neurons':
        return replace(arch, mlp_ratio=(ratio_of(size, arch.embed_dim),) * arch.depth)
    ratios = tuple(ratio_of(hidden, size) for hidden in arch.hidden_dims)
    return replace(arch, embed_dim=size, mlp_ratio=ratios)


class Probe:
    """Compares subnets with the network they are cut from, on the same images.

    Args:
        model: The supernet. What it computes at full size now is the original.
        batches: Batches of its ``data_preprocessor``, best of images that no score has seen.
    """

    def __init__(self, model: SupernetClassifier, batches: Sequence[dict]):
        if not batches:
            raise UserError('there are no images to measure on; give some')
        self.model, self.batches = model, batches
        self.original = outputs(model, model.backbone.arch, batches)
        self.labels = labels_of(model, batches)

    def __call__(self, subnet: Subnet) -> dict:
        """Measure a subnet.

        Returns:
            ``damage``, see :func:`~.outputs.damage_of`; ``agreement``, the share of images that
            get the same class, and ``top1`` in percent, where there are classes and labels;
            ``macs`` and ``params``.
        """
        return self.compared(subnet, outputs(self.model, subnet, self.batches))

    def compared(self, subnet: Subnet, found: Tensor) -> dict:
        """What a subnet with these outputs is like."""
        result = dict(damage=float(damage_of(self.model, self.original, found).mean()))
        if self.model.head is not None:
            result['agreement'] = float(
                (found.argmax(1) == self.original.argmax(1)).double().mean()
            )
        if self.labels is not None:
            result['top1'] = 100 * float((found.argmax(1) == self.labels).double().mean())
        costs = {name: count(subnet, **self.model.image_spec) for name, count in COSTS.items()}
        return result | costs

    @property
    def chance(self) -> float | None:
        """Agreement of always answering what the original answers most; None without classes."""
        if self.model.head is None:
            return None
        answers = self.original.argmax(1)
        return float(answers.bincount().max() / len(answers))


def measure_dimensions(
    probe: Probe,
    choices: Mapping[str, Sequence[int]],
    tell: Callable[[], object] = lambda: None,
) -> dict[str, list[dict]]:
    """Measure each dimension alone.

    Args:
        probe: Of the supernet.
        choices: Sizes by dimension, as :func:`smaller_choices` gives them.
        tell: Called after each subnet.

    Returns:
        For each dimension the results of :class:`Probe`, with ``size``; the first is the original.
    """
    arch, found = probe.model.backbone.arch, {}
    first = probe.compared(arch, probe.original)
    full = dict(
        neurons=arch.hidden_dims[0],
        heads=arch.num_heads[0],
        depth=arch.depth,
        width=arch.embed_dim,
    )
    for name, sizes in choices.items():
        found[name] = [dict(size=full[name]) | first]
        for size in sizes:
            found[name].append(dict(size=size) | probe(shrunk(probe.model, name, size)))
            tell()
    return found
