"""Mixture of LoRA experts (TAS-LoRA): pure functions for the maths, and a thin layer."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .elastic import ElasticLinear, slice_weight


def merge_experts(weight: Tensor, lora_a: Tensor, lora_b: Tensor, gates: Tensor) -> Tensor:
    """W' = W + sum_k p_k U_k D_k / r (TAS-LoRA, Algorithm 1) in one matrix product.

    Args:
        weight: W, (O, I).
        lora_a: Down projections D, (K, R, I).
        lora_b: Up projections U, (K, O, R).
        gates: Mixture weights p, (K,).

    Returns:
        (O, I), differentiable in all four.
    """
    scale = (gates / lora_a.shape[1])[:, None, None]
    if lora_b.shape[1] < lora_a.shape[2]:  # scale the smaller one: the backward keeps the copy
        lora_b = lora_b * scale
    else:
        lora_a = lora_a * scale
    up = lora_b.transpose(0, 1).flatten(1)  # (O, K R)
    return torch.addmm(weight, up, lora_a.flatten(0, 1))  # (K R, I)


def fold_gates(gates: Tensor, num_experts: int) -> Tensor:
    """Sum the gates of neighbouring experts for a layer with fewer experts than the router.

    Router expert k maps to expert floor(k num_experts / K) of the layer. Sums of gates stay on
    the simplex. Equal numbers of experts change nothing.

    Args:
        gates: (K,).
        num_experts: Experts of the layer, at most K.

    Returns:
        (num_experts,).
    """
    if num_experts == len(gates):
        return gates
    expert = torch.arange(len(gates), device=gates.device) * num_experts // len(gates)
    return gates.new_zeros(num_experts).index_add(0, expert, gates)


def mole_linear(
    x: Tensor, weight: Tensor, bias: Tensor, lora_a: Tensor, lora_b: Tensor, gates: Tensor
) -> Tensor:
    """The unmerged layer: W x + b + sum_k p_k U_k (D_k x) / r.

    The reference that :func:`merge_experts` is tested against. It is slower, as it runs once per
    expert. Shapes are as there; ``x`` is (..., I), the result (..., O).
    """
    y = F.linear(x, weight, bias)
    for down, up, gate in zip(lora_a, lora_b, gates, strict=True):
        y = y + gate * F.linear(F.linear(x, down), up) / lora_a.shape[1]
    return y


class MoLELinear(ElasticLinear):
    """Elastic linear layer with K low-rank experts, sliced like its weight.

    From :meth:`merge` to :meth:`unmerge` the layer uses the merged weight and costs as much as a
    plain one. Otherwise it is the bare supernet's layer. The merged weight is a plain attribute,
    not a parameter or buffer, so it is never in a state dict.

    Experts are initialised as in LoRA: D uniform in +-1/sqrt(I), U zero.

    Args:
        in_features: Full input width I.
        out_features: Full output width O of a part.
        parts: Number of parts P.
        init_std: Standard deviation of the initial weights.
        num_experts: Number of experts K.
        rank: Rank R of each expert.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        parts: int = 1,
        init_std: float = 0.02,
        *,
        num_experts: int,
        rank: int,
    ):
        super().__init__(in_features, out_features, parts, init_std)
        bound = in_features**-0.5
        self.lora_a = nn.Parameter(
            torch.empty(num_experts, rank, in_features).uniform_(-bound, bound)
        )
        self.lora_b = nn.Parameter(torch.zeros(num_experts, *self.weight.shape[:-1], rank))
        self.merged: Tensor | None = None

    def merge(self, gates: Tensor, out_features: int, in_features: int) -> None:
        """Hold W' for these widths; ``gates`` is (K,), folded if the layer has fewer experts."""
        weight = slice_weight(self.weight, out_features, in_features)
        lora_a = self.lora_a[..., :in_features]
        lora_b = self.lora_b[..., :out_features, :].flatten(1, -2)  # (K, P o, R)
        self.merged = merge_experts(weight, lora_a, lora_b, fold_gates(gates, len(lora_a)))

    def unmerge(self) -> None:
        """Drop W' and its graph."""
        self.merged = None

    def sliced_weight(self, out_features: int, in_features: int) -> Tensor:
        """The merged weight if there is one, else the supernet's, (P o, i)."""
        if self.merged is None:
            return super().sliced_weight(out_features, in_features)
        return self.merged

    def extra_repr(self) -> str:
        """Sizes, for ``print(model)``."""
        num_experts, rank, _ = self.lora_a.shape
        return f'{super().extra_repr()}, num_experts={num_experts}, rank={rank}'


Sliced = tuple[ElasticLinear, int, int]  # with its active (output, input) widths


def merge_layers(layers: Sequence[Sliced], gates: Tensor) -> None:
    """Merge the experts of the layers of one kind, if they have any; ``gates`` is (L, K).

    On a GPU they are merged together, unless numbers or ranks of experts differ.
    """
    sizes = {layer.lora_a.shape[:2] for layer, *_ in layers if isinstance(layer, MoLELinear)}
    alike = len(sizes) == 1 and gates.shape[1] == min(sizes)[0]
    (merge_together if gates.is_cuda and alike else merge_each)(layers, gates)


def merge_each(layers: Sequence[Sliced], gates: Tensor) -> None:
    """Call :meth:`MoLELinear.merge` of each layer that has experts; ``gates`` is (L, K)."""
    for (layer, *widths), gate in zip(layers, gates, strict=True):
        if isinstance(layer, MoLELinear):
            layer.merge(gate, *widths)


def merge_together(layers: Sequence[Sliced], gates: Tensor) -> None:
    """Do what :func:`merge_each` does in 4 operations, and 3 or 4 for each pair of widths.

    A GPU is kept waiting by many small operations. On a CPU it takes as long or a little longer,
    as the backward copies the gradients into one tensor.

    Args:
        layers: Layers with equal parts, and equal numbers and ranks of experts. All have the same
            output width, or the same input width.
        gates: (L, K).
    """
    order = sorted(range(len(layers)), key=lambda i: layers[i][1:])
    layers, rows = [layers[i] for i in order], gates.unbind()
    scale = torch.stack([rows[i] for i in order]) / layers[0][0].lora_a.shape[1]  # (L, K)
    groups = [list(group) for _, group in groupby(layers, key=lambda sliced: sliced[1:])]
    sizes = [len(group) for group in groups]
    if len({in_features for *_, in_features in layers}) == 1:  # scale the factor that all share
        downs = (_stacked_down(layers) * scale[:, :, None, None]).split(sizes)
        ups = [_stacked_up(group) for group in groups]
    else:
        downs = [_stacked_down(group) for group in groups]
        ups = (_stacked_up(layers) * scale[:, None, None, :, None]).split(sizes)
    for group, up, down in zip(groups, ups, downs, strict=True):
        _merge_group(group, up, down)


def _merge_group(layers: Sequence[Sliced], up: Tensor, down: Tensor) -> None:
    """Merge layers of equal widths, by their (L, P, o, K, R) and (L, K, R, i)."""
    weights = torch.cat(
        [
            layer.weight.view(layer.parts, layer.out_features, -1)[:, :out_features, :in_features]
            for layer, out_features, in_features in layers
        ]
    )  # (L P, o, i)
    down = down.flatten(1, 2)[:, None].expand(-1, up.shape[1], -1, -1).flatten(0, 1)
    weights.baddbmm_(up.flatten(3).flatten(0, 1), down)  # of a view it would copy in the backward
    merged = weights.unflatten(0, (len(layers), -1)).flatten(1, 2).unbind()
    _hold([layer for layer, *_ in layers], merged)


def _stacked_down(layers: Sequence[Sliced]) -> Tensor:
    """(L, K, R, i)."""
    return torch.stack([layer.lora_a[..., :in_features] for layer, _, in_features in layers])


def _stacked_up(layers: Sequence[Sliced]) -> Tensor:
    """(L, P, o, K, R)."""
    factors = [
        layer.lora_b.view(len(layer.lora_b), layer.parts, layer.out_features, -1)
        .narrow(2, 0, out_features)
        .permute(1, 2, 0, 3)
        for layer, out_features, _ in layers
    ]
    # Not torch.stack: of more than four dimensions, a GPU copies one tensor after the other.
    return torch.cat(factors).unflatten(0, (len(layers), -1))


def expert_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """All LoRA factors of ``model``."""
    for layer in model.modules():
        if isinstance(layer, MoLELinear):
            yield from (layer.lora_a, layer.lora_b)


@contextmanager
def unmerged(layers: Iterable[MoLELinear]) -> Iterator[None]:
    """Run ``layers`` without experts, then put the merged weights back in place."""
    layers = list(layers)
    merged = [layer.merged for layer in layers]
    _hold(layers, [None] * len(layers))
    try:
        yield
    finally:
        _hold(layers, merged)


def recomputed(block: nn.Module, *inputs) -> Tensor:
    """Run ``block`` without keeping its activations.

    The second run, in the backward, uses the weights merged now. By then the block may hold
    others, or none.
    """
    layers = [layer for layer in block.modules() if isinstance(layer, MoLELinear)]
    merged = [layer.merged for layer in layers]

    def run(*inputs):
        present = [layer.merged for layer in layers]
        _hold(layers, merged)
        try:
            return block(*inputs)
        finally:  # torch ends the second run by an exception once it has what it needs
            _hold(layers, present)

    return checkpoint(run, *inputs, use_reentrant=False)


def _hold(layers: list[MoLELinear], weights: Sequence[Tensor | None]) -> None:
    for layer, weight in zip(layers, weights, strict=True):
        layer.merged = weight


def linear_factory(
    experts: dict[str, tuple[int, int]], init_std: float
) -> Callable[..., ElasticLinear]:
    """Return ``linear(kind, ...)`` of a block; ``experts`` is (number, rank) by kind."""

    def linear(kind: str, *sizes: int, parts: int = 1) -> ElasticLinear:
        if kind not in experts:
            return ElasticLinear(*sizes, parts, init_std)
        num_experts, rank = experts[kind]
        return MoLELinear(*sizes, parts, init_std, num_experts=num_experts, rank=rank)

    return linear
