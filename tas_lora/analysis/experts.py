"""How alike the experts of a layer are: their factors, what they add to weights, what they say."""

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
    """A layer with experts, as a subnet slices it.

    Attributes:
        name: Such as 'block 0 qkv', blocks from 0.
        place: Block and layer kind, the row of the router's gates.
        layer: The module.
        out_features: Rows in use, of each part.
        in_features: Columns in use.
    """

    name: str
    place: tuple[int, int]
    layer: MoLELinear
    out_features: int
    in_features: int

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """Down (K, R, i) and up projections (K, P o, R) in use, without gradients."""
        down = self.layer.lora_a.detach()[..., : self.in_features]
        up = self.layer.lora_b.detach()[..., : self.out_features, :].flatten(1, -2)
        return down, up


def require_experts(model: SupernetClassifier, name: str, several: bool = True) -> None:
    """Refuse a model without experts, or with ``several`` one that has a single expert a layer.

    Raises:
        UserError: Saying that of the checkpoint ``name``.
    """
    if model.router is None:
        raise UserError(
            f'{name} has no experts, its config is that of a bare supernet; give one of stage 2 '
            '(a moLE config) with its checkpoint'
        )
    if several and all(len(layer.lora_a) == 1 for layer in model.backbone.mole_layers()):
        raise UserError(
            f'{name} has one expert in each layer, which is always used and has no other to be '
            'compared with; give a checkpoint with mole.num_experts of 2 or more'
        )


def expert_layers(model: SupernetClassifier, subnet: Subnet) -> Iterator[ExpertLayer]:
    """The layers with experts that ``subnet`` runs, in order."""
    for b, (block, widths) in enumerate(model.backbone.active_blocks(subnet)):
        for j, (layer, out_features, in_features) in enumerate(block.sliced_linears(*widths)):
            if isinstance(layer, MoLELinear):
                name = f'block {b} {LAYER_KINDS[j]}'
                yield ExpertLayer(name, (b, j), layer, out_features, in_features)


def factor_similarity(lora_a: Tensor, lora_b: Tensor) -> dict[str, np.ndarray]:
    """Cosine of experts i and j as vectors of all their numbers.

    ``a`` and ``b`` depend on the basis in which an expert writes its R directions: the same
    expert, rotated, has other factors. ``product`` does not, as <U_i D_i, U_j D_j> is the sum of
    (U_i^T U_j) * (D_i D_j^T).

    Args:
        lora_a: Down projections D, (K, R, I).
        lora_b: Up projections U, (K, O, R).

    Returns:
        (K, K) for 'a', 'b' and 'product'; NaN at an expert that is all zeros, as all are in 'b'
        and 'product' before training.
    """
    down, up = _grams(lora_a, lora_b)
    return dict(
        a=_cosine(down.diagonal(dim1=2, dim2=3).sum(-1)),
        b=_cosine(up.diagonal(dim1=2, dim2=3).sum(-1)),
        product=_cosine((up * down).sum((2, 3))),
    )


def output_similarity(x: Tensor, lora_a: Tensor, lora_b: Tensor) -> np.ndarray:
    """Cosine of what experts i and j add to the output, averaged over tokens.

    The paper compares the experts' features (arXiv 2605.07256, supplementary): group-wise
    initialisation leaves them less alike than a random one, in every layer.

    Args:
        x: Inputs of the layer, (T, I).
        lora_a: Down projections D, (K, R, I).
        lora_b: Up projections U, (K, O, R).

    Returns:
        (K, K); NaN at an expert that adds nothing to some token.
    """
    low = torch.einsum('ti,kri->ktr', x.double(), lora_a.double())
    up = _grams(lora_a, lora_b)[1]
    inner = [torch.einsum('tr,lrs,lts->lt', low[k], up[k], low) for k in range(len(low))]
    products = torch.stack(inner)  # (K, K, T)
    sizes = products.diagonal().T.clamp(min=0).sqrt()  # (K, T)
    return (products / (sizes[:, None] * sizes)).mean(-1).cpu().numpy()


def expert_similarity(
    model: SupernetClassifier, subnet: Subnet, batches: Iterable[dict] = ()
) -> dict[str, dict[str, np.ndarray]]:
    """Similarity of the experts of each layer, at the widths of ``subnet``.

    Args:
        model: A supernet with experts; see :func:`require_experts`.
        subnet: Usually the largest of the space.
        batches: Images for 'output', which is left out without them.

    Returns:
        By layer, then by measure (out of ``MEASURES``), (K, K).
    """
    layers = list(expert_layers(model, subnet))
    found = {layer.name: factor_similarity(*layer.factors) for layer in layers}
    for layer, tokens in _inputs(model, subnet, layers, batches):
        found[layer.name]['output'] = output_similarity(tokens, *layer.factors)
    return found


def _inputs(
    model: SupernetClassifier, subnet: Subnet, layers: list[ExpertLayer], batches: Iterable[dict]
) -> list[tuple[ExpertLayer, Tensor]]:
    """What each layer is given, (T, i): all tokens of all images; empty without images."""
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
    """D_i D_j^T and U_i^T U_j of all pairs, each (K, K, R, R)."""
    a, b = lora_a.double(), lora_b.double()
    return torch.einsum('kri,lsi->klrs', a, a), torch.einsum('kor,los->klrs', b, b)


def _cosine(products: Tensor) -> np.ndarray:
    """From inner products (K, K) to cosines."""
    sizes = products.diagonal().clamp(min=0).sqrt()
    return (products / (sizes[:, None] * sizes)).cpu().numpy()
