"""Similarity of the features of subnets on the same images, which measures feature collapse.

TAS-LoRA (arXiv 2605.07256, Fig. 1) compares penultimate features by cosine, averaged over images.
Subnets of different width share their first channels.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from ..models import SupernetClassifier
from ..structures import Subnet


@contextmanager
def evaluating(model: SupernetClassifier) -> Iterator[None]:
    """Evaluate without gradients, then restore the subnet and the mode of each module.

    Experts that were merged before are not merged afterwards.
    """
    subnet, modes = model.subnet, [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.set_subnet(subnet)
        for module, training in modes:  # one by one: frozen ones may have been in evaluation mode
            module.training = training


def penultimate_features(
    model: SupernetClassifier, subnet: Subnet, batches: Iterable[dict]
) -> Tensor:
    """Compute the classifier's inputs for a subnet; experts, if any, are merged.

    Args:
        model: A supernet or a standalone network.
        subnet: Subnet to evaluate.
        batches: Batches with ``inputs``, as a dataloader yields them.

    Returns:
        (N, C), float32 on the CPU; C is the subnet's width. (N, 2, C) if the feature is a class
        token and a mean.

    Raises:
        UserError: If the subnet does not fit, or there are no images.
    """
    with evaluating(model):
        model.set_subnet(subnet)
        model.merge_experts()
        inputs = (model.data_preprocessor(b, training=False)['inputs'] for b in batches)
        found = [model.extract_feat(x, stage='pre_logits').float().cpu() for x in inputs]
    if not found:
        raise UserError('there are no images to compute features of; give some')
    features, parts = torch.cat(found), model.backbone.feature_parts
    return features.unflatten(1, (parts, -1)) if parts > 1 else features


def feature_similarity(features: Sequence[Tensor]) -> np.ndarray:
    """Mean cosine over images of two networks' features, on the channels both have.

    Args:
        features: (N, C) or (N, 2, C) for each of n networks, on the same N images; C may differ.

    Returns:
        (n, n), symmetric, from -1 to 1. The cosine of an all-zero feature is 0.
    """

    def compare(a: Tensor, b: Tensor) -> Tensor:
        shared = min(a.shape[-1], b.shape[-1])
        a, b = (x[..., :shared].flatten(1).double() for x in (a, b))
        return F.cosine_similarity(a, b).mean()

    return _matrix(features, compare)


def linear_cka(features: Sequence[Tensor]) -> np.ndarray:
    """Linear centred kernel alignment (Kornblith et al., ICML 2019), on all channels of both.

    |Y^T X|^2 / (|X^T X| |Y^T Y|) of centred features, with Frobenius norms. It ignores rotations
    and hardly separates subnets of a supernet from networks trained alone.

    Returns:
        (n, n), symmetric, from 0 to 1; NaN where features are equal for all images.
    """

    def compare(x: Tensor, y: Tensor) -> Tensor:
        return (y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())

    flat = [f.flatten(1).double() for f in features]
    return _matrix([f - f.mean(dim=0) for f in flat], compare)


def off_diagonal(matrix: np.ndarray) -> np.ndarray:
    """Return the n (n - 1) / 2 values of a symmetric matrix above its diagonal."""
    return matrix[np.triu_indices(len(matrix), 1)]


def spread(matrix: np.ndarray) -> dict[str, float]:
    """Mean, minimum and maximum of the finite values off the diagonal; NaN if there are none."""
    values = off_diagonal(matrix)
    values = values[np.isfinite(values)]
    if not len(values):
        return dict.fromkeys(('mean', 'min', 'max'), np.nan)
    return dict(mean=float(values.mean()), min=float(values.min()), max=float(values.max()))


def _matrix(items: Sequence[Tensor], compare: Callable[[Tensor, Tensor], Tensor]) -> np.ndarray:
    matrix = np.empty((len(items), len(items)))
    for i, a in enumerate(items):
        for j, b in enumerate(items[: i + 1]):
            matrix[i, j] = matrix[j, i] = float(compare(a, b))
    return matrix
