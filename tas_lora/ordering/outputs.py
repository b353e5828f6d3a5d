"""What subnets give out, and how far that is from the output of the original."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from ..analysis.features import evaluating
from ..models import SupernetClassifier
from ..structures import Subnet


def output_of(model: SupernetClassifier, images: Tensor) -> Tensor:
    """Logits of the active subnet (B, classes), or without a head its last feature (B, n).

    A narrow feature is filled with zeros to the supernet's width, so that features compare.
    """
    found = model(images, mode='tensor')
    if isinstance(found, Tensor):
        return found
    parts, feature = model.backbone.feature_parts, found[-1]
    missing = model.backbone.arch.embed_dim - model.subnet.embed_dim
    feature = feature.reshape(len(feature), parts, model.subnet.embed_dim, -1)  # places of a map
    return F.pad(feature, (0, 0, 0, missing)).flatten(1)


@contextmanager
def without_head(model: SupernetClassifier) -> Iterator[None]:
    """Give out features for a while."""
    head, model.head = model.head, None
    try:
        yield
    finally:
        model.head = head


def outputs(model: SupernetClassifier, subnet: Subnet, batches: Iterable[dict]) -> Tensor:
    """:func:`output_of` ``subnet`` for all images, (N, n), float32 on the CPU."""
    with evaluating(model):
        model.set_subnet(subnet)
        return torch.cat([output_of(model, batch['inputs']).float().cpu() for batch in batches])


def damage_of(model: SupernetClassifier, original: Tensor, found: Tensor) -> Tensor:
    """Distance of outputs from those of the original, for each image (N,); needs no labels.

    The Kullback-Leibler divergence of the classes' probabilities from the original's, or without
    a head 1 - cosine of the features.
    """
    if model.head is None:
        return 1 - F.cosine_similarity(original, found)
    if model.is_multi_label:  # each class is a distribution of two
        original, found = (torch.stack([x, torch.zeros_like(x)], -1) for x in (original, found))
    else:
        original, found = original[:, None], found[:, None]
    logs = found.log_softmax(-1), original.log_softmax(-1)
    return F.kl_div(*logs, reduction='none', log_target=True).sum((1, 2))


def labels_of(model: SupernetClassifier, batches: Sequence[dict]) -> Tensor | None:
    """The one label of each image (N,); None if there are none, or several to an image."""
    samples = [sample for batch in batches for sample in batch.get('data_samples') or ()]
    if not samples or model.head is None or model.is_multi_label:
        return None
    if not all('gt_label' in sample for sample in samples):
        return None
    return torch.cat([sample.gt_label.flatten() for sample in samples]).cpu()
