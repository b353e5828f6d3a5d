"""Whether a supernet ranks subnets in the same order as training each of them alone."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import UserError
from ..models import SupernetClassifier
from ..structures import Subnet
from .features import evaluating

SCORES = ('top1', 'loss')


def score(model: SupernetClassifier, subnet: Subnet, batches: Iterable[dict]) -> dict[str, float]:
    """Compute the top-1 in percent and mean cross-entropy of a subnet; experts are merged.

    Args:
        model: A supernet or a standalone network.
        subnet: Subnet to evaluate.
        batches: Batches with ``inputs`` and labelled ``data_samples``, as a dataloader yields them.

    Raises:
        UserError: If the subnet does not fit, or there are no images, or they have several labels.
    """
    if model.is_multi_label:
        raise UserError('ranks by top-1 and cross-entropy, but model.head is for several labels')
    right, loss, images = 0, 0.0, 0
    with evaluating(model):
        model.set_subnet(subnet)
        model.merge_experts()
        for batch in batches:
            data = model.data_preprocessor(batch, training=False)
            logits = model(data['inputs'], mode='tensor').float()
            labels = torch.cat([s.gt_label for s in data['data_samples']]).to(logits.device)
            right += int((logits.argmax(dim=1) == labels).sum())
            loss += float(F.cross_entropy(logits, labels, reduction='sum'))
            images += len(labels)
    if not images:
        raise UserError('there are no images to score a subnet on; give some')
    return dict(top1=100 * right / images, loss=loss / images)


def kendall_tau(a: Sequence[float], b: Sequence[float]) -> float:
    """Kendall's tau-b of two scores: 1 for the same order, -1 for the reverse order.

    (C - D) / sqrt((n0 - ties in a) (n0 - ties in b)), with C concordant pairs, D discordant pairs
    and n0 = n (n - 1) / 2 pairs in total (Kendall, Biometrika 1945). NaN if either is constant.
    """
    pairs = np.triu_indices(len(a), 1)
    one, two = (np.sign(np.subtract.outer(x, x))[pairs] for x in (a, b))
    size = np.sqrt(np.square(one).sum() * np.square(two).sum())
    return float((one * two).sum() / size) if size else float('nan')


def taus(predicted: Sequence[Mapping], alone: Sequence[Mapping]) -> dict[str, float]:
    """Compute :func:`kendall_tau` for each score that all records of both have."""
    both = [*predicted, *alone]
    return {
        name: kendall_tau([r[name] for r in predicted], [r[name] for r in alone])
        for name in SCORES
        if all(name in record for record in both)
    }


def check_sanity(smallest: Mapping[str, float], largest: Mapping[str, float]) -> dict[str, bool]:
    """Whether the largest subnet is better than the smallest, as it should be, for each score."""
    return dict(top1=largest['top1'] > smallest['top1'], loss=largest['loss'] < smallest['loss'])
