"""Similarity of the experts of a layer: of their factors, weight updates and outputs."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..models import SupernetClassifier
from ..models.layers import LAYER_KINDS, MoLELinear
from ..structures import Subnet
from .features import evaluating

MEASURES = ('a', 'b', 'product', 'output')


@dataclass(frozen=True)
class ExpertLayer:
    """A layer with experts, sliced for a subnet.

    Attributes:
        name: For example 'block 0 qkv'; blocks count from 0, as in the supernet.
        place: Indices of block and layer kind in the router's gates.
        layer: The module.
        out_features: Rows in use in each part.
        in_features: Columns in use.
    """

    name: str
    place: tuple[int, int]
    layer: MoLELinear
    out_features: int
    in_features: int

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """Active down (K, R, i) and up projections (K, P o, R), detached."""
        down = self.layer.lora_a.detach()[..., : self.in_features]
        up = self.layer.lora_b.detach()[..., : self.out_features, :].flatten(1, -2)
        return down, up


def require_experts(model: SupernetClassifier, name: str) -> None:
    """Refuse a model without experts, or with a single expert per layer.

    Raises:
        UserError: About the checkpoint ``name``.
    """
    if model.router is None:
        raise UserError(
            f'{name} has no experts: its config is for a plain supernet; use a moLE config, of '
            'stage 2, and its checkpoint'
        )
    if all(len(layer.lora_a) == 1 for layer in model.backbone.mole_layers()):
        raise UserError(
            f'{name} has one expert in each layer, so there is nothing to compare; use a '
            'checkpoint with mole.num_experts of 2 or more'
        )


def expert_layers(model: SupernetClassifier, subnet: Subnet) -> Iterator[ExpertLayer]:
    """Yield the layers with experts that ``subnet`` uses, in order."""
    blocks = model.backbone.blocks_of(subnet)
    for b, (block, widths) in enumerate(model.backbone.active_blocks(subnet)):
        for j, (layer, out_features, in_features) in enumerate(block.sliced_linears(*widths)):
            if isinstance(layer, MoLELinear):
                name = f'block {blocks[b]} {LAYER_KINDS[j]}'
                yield ExpertLayer(name, (b, j), layer, out_features, in_features)


def factor_similarity(lora_a: Tensor, lora_b: Tensor) -> dict[str, np.ndarray]:
    """Cosine of experts i and j, as vectors of all their entries.

    ``a`` and ``b`` depend on the basis of an expert's R directions: a rotation changes its factors
    but not the expert. ``product`` does not: <U_i D_i, U_j D_j> is the sum of
    (U_i^T U_j) * (D_i D_j^T).

    Args:
        lora_a: Down projections D, (K, R, I).
        lora_b: Up projections U, (K, O, R).

    Returns:
        (K, K) for 'a', 'b' and 'product'; NaN for an expert that is all zeros, as every one is in
        'b' and 'product' before training.
    """
    down, up = _grams(lora_a, lora_b)
    return dict(
        a=_cosine(down.diagonal(dim1=2, dim2=3).sum(-1)),
        b=_cosine(up.diagonal(dim1=2, dim2=3).sum(-1)),
        product=_cosine((up * down).sum((2, 3))),
    )


def output_similarity(x: Tensor, lora_a: Tensor, lora_b: Tensor) -> np.ndarray:
    """Cosine of the outputs of experts i and j, averaged over tokens.

    The paper compares the experts' features (arXiv 2605.07256, supplementary): in every layer they
    are less similar with group-wise than with random initialisation.

    Args:
        x: Inputs of the layer, (T, I).
        lora_a: Down projections D, (K, R, I).
        lora_b: Up projections U, (K, O, R).

    Returns:
        (K, K); NaN for an expert with an output of zero for some token.
    """
    low = torch.einsum('ti,kri->ktr', x.double(), lora_a.double())
    up = _grams(lora_a, lora_b)[1]
    inner = [torch.einsum('tr,lrs,lts->lt', low[k], up[k], low) for k in range(len(low))]
    return _cosine(torch.stack(inner)).mean(-1)


def expert_similarity(
    model: SupernetClassifier, subnet: Subnet, batches: Iterable[dict] = ()
) -> dict[str, dict[str, np.ndarray]]:
    """Compare the experts of each layer, at the widths of ``subnet``.

    Args:
        model: A supernet with experts; see :func:`require_experts`.
        subnet: Usually the largest of the space.
        batches: Images for 'output', which is omitted without them.

    Returns:
        (K, K) by layer and by measure (from ``MEASURES``).
    """
    layers = list(expert_layers(model, subnet))
    found = {layer.name: factor_similarity(*layer.factors) for layer in layers}
    for layer, tokens in _inputs(model, subnet, layers, batches):
        found[layer.name]['output'] = output_similarity(tokens, *layer.factors)
    return found


def _inputs(
    model: SupernetClassifier, subnet: Subnet, layers: list[ExpertLayer], batches: Iterable[dict]
) -> list[tuple[ExpertLayer, Tensor]]:
    """Record the inputs of each layer, (T, i): all tokens of all images; empty without images."""
    seen = {layer.name: [] for layer in layers}

    def note(name: str):
        return lambda _, inputs: seen[name].append(inputs[0].detach().flatten(0, -2))

    handles = [layer.layer.register_forward_pre_hook(note(layer.name)) for layer in layers]
    try:
        with evaluating(model):
            model.set_subnet(subnet)
            for batch in batches:
                model.extract_feat(model.data_preprocessor(batch, training=False)['inputs'])
    finally:
        for handle in handles:
            handle.remove()
    return [(layer, torch.cat(seen[layer.name])) for layer in layers if seen[layer.name]]


def _grams(lora_a: Tensor, lora_b: Tensor) -> tuple[Tensor, Tensor]:
    """Compute D_i D_j^T and U_i^T U_j for all pairs, each (K, K, R, R)."""
    a, b = lora_a.double(), lora_b.double()
    return torch.einsum('kri,lsi->klrs', a, a), torch.einsum('kor,los->klrs', b, b)


def _cosine(products: Tensor) -> np.ndarray:
    """Normalise inner products, (K, K) or (K, K, T), to cosines."""
    sizes = products.diagonal().movedim(-1, 0).clamp(min=0).sqrt()  # (K) or (K, T)
    return (products / (sizes[:, None] * sizes)).cpu().numpy()
