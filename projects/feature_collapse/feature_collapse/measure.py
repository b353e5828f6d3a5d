"""What is measured of a trained net."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tas_lora import Subnet
from tas_lora.models import SupernetClassifier

BATCH = 1000


@torch.no_grad()
def predict(
    model: SupernetClassifier, subnet: Subnet, images: Tensor, shift: int = 0
) -> tuple[Tensor, Tensor]:
    """Logits (N, classes) and penultimate features (N, C) of a subnet.

    Args:
        model: The net, in evaluation mode.
        subnet: The subnet, C wide.
        images: (N, 1, side, side), bytes.
        shift: Gives each expert the gate of the one so many places before it: wrong ones.
    """
    model.set_subnet(subnet)
    if shift:
        model.backbone.merge_experts(subnet, model.router(subnet).roll(shift, -1))
    else:
        model.merge_experts()
    logits, features = [], []
    for batch in images.split(BATCH):
        inputs = model.data_preprocessor(dict(inputs=batch))['inputs']
        tokens = model.extract_feat(inputs)
        features.append(tokens[-1])
        logits.append(model.head(tokens))
    model.unmerge_experts()
    return torch.cat(logits), torch.cat(features)


def scores(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Top-1 in percent, and mean cross-entropy."""
    return dict(
        top1=100 * float((logits.argmax(1) == labels).float().mean()),
        loss=float(F.cross_entropy(logits, labels)),
    )


@torch.no_grad()
def weights_in_use(model: SupernetClassifier, subnet: Subnet) -> list[Tensor]:
    """The matrices of a subnet's linear layers, experts merged."""
    model.set_subnet(subnet)
    model.merge_experts()
    layers = [
        layer.sliced_weight(out_features, in_features).clone()
        for block, widths in model.backbone.active_blocks(subnet)
        for layer, out_features, in_features in block.sliced_linears(*widths)
    ]
    model.unmerge_experts()
    return layers


def relative_change(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """|dW| / |W| over all matrices together, Frobenius norms."""
    change = sum((b - a).square().sum() for b, a in zip(before, after, strict=True))
    return float((change / sum(b.square().sum() for b in before)).sqrt())
