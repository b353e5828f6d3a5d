"""What subnets see in the same images, and how alike it is: feature collapse as a number.

TAS-LoRA (arXiv 2605.07256, Fig. 1) compares penultimate features by cosine, averaged over images.
Subnets differ in width; the channels that two of them share are the first ones of both.
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
    """Evaluation mode, no gradients; behind it, subnet and mode of each module are as before.

    Experts that were merged before are not merged any more.
    """
    subnet, modes = model.subnet, [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.set_subnet(subnet)
        for module, training in modes:  # one by one: some may have been frozen in evaluation mode
            module.training = training


def penultimate_features(
    model: SupernetClassifier, subnet: Subnet, batches: Iterable[dict]
) -> Tensor:
    """What the classifier of a subnet reads, experts merged if there are any.

    Args:
        model: A supernet, or a network by itself.
        subnet: Which of its subnets.
        batches: Batches with ``inputs``, as dataloaders give them.

    Returns:
        (N, C) in float32 on the CPU, C the subnet's width.

    Raises:
        UserError: If the subnet does not fit, or there are no images.
    """
    with evaluating(model):
        model.set_subnet(subnet)
        model.merge_experts()
        found = [_features(model, batch) for batch in batches]
    if not found:
        raise UserError('there are no images to take features of')
    return torch.cat(found)


def feature_similarity(features: Sequence[Tensor]) -> np.ndarray:
    """Mean over images of the cosine of two networks' features, on the channels both have.

    Args:
        features: For each of n networks (N, C), of the same N images; C may differ.

    Returns:
        (n, n), symmetric, from -1 to 1. A feature that is all zeros counts as 0.
    """

    def compare(a: Tensor, b: Tensor) -> Tensor:
        shared = min(a.shape[1], b.shape[1])
        return F.cosine_similarity(a[:, :shared].double(), b[:, :shared].double()).mean()

    return _matrix(features, compare)


def linear_cka(features: Sequence[Tensor]) -> np.ndarray:
    """Linear centred kernel alignment (Kornblith et al., ICML 2019), with all channels of both.

    |Y^T X|^2 / (|X^T X| |Y^T Y|) of centred features, Frobenius norms. It does not see rotations,
    and hardly tells subnets of one supernet from networks trained alone.

    Returns:
        (n, n), symmetric, from 0 to 1; NaN where features do not differ between images.
    """

    def compare(x: Tensor, y: Tensor) -> Tensor:
        return (y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())

    return _matrix([f.double() - f.double().mean(dim=0) for f in features], compare)


def off_diagonal(matrix: np.ndarray) -> np.ndarray:
    """The n (n - 1) / 2 values of a symmetric matrix above its diagonal."""
    return matrix[np.triu_indices(len(matrix), 1)]


def spread(matrix: np.ndarray) -> dict[str, float]:
    """Mean, least and most of the values off the diagonal that are numbers; NaN without any."""
    values = off_diagonal(matrix)
    values = values[np.isfinite(values)]
    if not len(values):
        return dict.fromkeys(('mean', 'min', 'max'), np.nan)
    return dict(mean=float(values.mean()), min=float(values.min()), max=float(values.max()))


def _features(model: SupernetClassifier, batch: dict) -> Tensor:
    inputs = model.data_preprocessor(batch, training=False)['inputs']
    return model.extract_feat(inputs, stage='pre_logits').float().cpu()


def _matrix(items: Sequence[Tensor], compare: Callable[[Tensor, Tensor], Tensor]) -> np.ndarray:
    matrix = np.empty((len(items), len(items)))
    for i, a in enumerate(items):
        for j, b in enumerate(items[: i + 1]):
            matrix[i, j] = matrix[j, i] = float(compare(a, b))
    return matrix
