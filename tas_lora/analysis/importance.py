"""How much each linear layer matters to the loss of a supernet."""

import torch
from torch import Tensor

from ..models.classifiers.supernet_classifier import SupernetClassifier
from ..models.layers import LAYER_KINDS


def layer_importance(model: SupernetClassifier, batch: dict) -> Tensor:
    """Sensitivity of the loss to the weights of each layer, at the active subnet and one batch.

    The mean over a layer's weights w in use of |w dL/dw|, to first order what the loss changes by
    without w (Molchanov et al., CVPR 2019; AdaLoRA, ICLR 2023, scores its singular values so).

    Args:
        model: A supernet; its gradients are cleared.
        batch: What its ``data_preprocessor`` gives.

    Returns:
        (depth of the supernet, 4) in the order of ``LAYER_KINDS``, 0 for blocks left out.
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
