"""Importance of each linear layer for the loss of a supernet."""

import torch
from torch import Tensor

from ..models.classifiers.supernet_classifier import SupernetClassifier
from ..models.layers import LAYER_KINDS


def layer_importance(model: SupernetClassifier, batch: dict) -> Tensor:
    """Sensitivity of the loss to the weights of each layer, for the active subnet and one batch.

    The mean of |w dL/dw| over a layer's active weights w: to first order, the change of the loss
    without w (Molchanov et al., CVPR 2019; AdaLoRA, ICLR 2023, scores singular values this way).

    Args:
        model: A supernet; its gradients are left as they are.
        batch: Output of its ``data_preprocessor``.

    Returns:
        (depth of the supernet, 4) in the order of ``LAYER_KINDS``; 0 for inactive blocks.
    """
    backbone, scores = model.backbone, torch.zeros(model.backbone.arch.depth, len(LAYER_KINDS))
    weights = [
        [(layer.weight, out * layer.parts * i) for layer, out, i in block.sliced_linears(*widths)]
        for block, widths in backbone.active_blocks(model.subnet)
    ]
    loss, _ = model.parse_losses(model(**batch, mode='loss'))
    flat = [weight for block in weights for weight, _ in block]
    gradients = iter(torch.autograd.grad(loss, flat))
    for b, block in enumerate(weights):
        for j, (weight, used) in enumerate(block):
            scores[b, j] = float((weight.detach() * next(gradients)).abs().sum()) / used
    return scores
