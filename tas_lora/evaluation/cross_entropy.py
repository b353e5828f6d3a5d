"""The validation loss, which ranks subnets."""

import torch
import torch.nn.functional as F
from mmengine.evaluator import BaseMetric
from mmpretrain.structures import label_to_onehot
from torch import Tensor

from ..checks import one_of
from ..errors import UserError
from ..models.heads.elastic_cls_head import refuse_label, refuse_several
from ..registry import METRICS


@METRICS.register_module()
class CrossEntropy(BaseMetric):
    """Mean loss over all images, from the scores that MMPretrain's heads predict.

    -log p(label), finer than top-1, which changes in steps of one image. With a head for several
    labels it is the binary cross-entropy, averaged over the classes. Yields ``cross_entropy``.

    Args:
        collect_device: As in ``BaseMetric``.
        prefix: As in ``BaseMetric``.
        **kwargs: As in ``BaseMetric``.

    Raises:
        UserError: If an argument is invalid, or a label is not one of the classes.
    """

    default_prefix = ''

    def __init__(self, collect_device: str = 'cpu', prefix: str | None = None, **kwargs):
        one_of(collect_device, 'collect_device', ('cpu', 'gpu'))
        if prefix is not None and not isinstance(prefix, str):
            raise UserError(f'must be a string or None, got {prefix!r}', 'prefix')
        super().__init__(collect_device, prefix, **kwargs)

    def process(self, data_batch, data_samples) -> None:
        """Collect the loss of each image in a batch."""
        for sample in data_samples:
            loss_of = _of_several if sample.get('multi_label') else _of_one
            self.results.append(loss_of(sample).item())

    def compute_metrics(self, results: list[float]) -> dict[str, float]:
        """Mean over the images of all ranks."""
        return dict(cross_entropy=sum(results) / len(results))


def _of_one(sample: dict) -> Tensor:
    """-log p(label); at most 87.3, as a softmax may round to 0."""
    labels, scores = sample['gt_label'].tolist(), sample['pred_score']
    if len(labels) != 1:
        refuse_several(labels, 'head for one label', sample.get('img_path', 'the data'))
    if not 0 <= labels[0] < len(scores):
        refuse_label(labels[0], len(scores))
    return -scores[labels[0]].float().clamp_min(torch.finfo(torch.float32).tiny).log()


def _of_several(sample: dict) -> Tensor:
    """Mean over the classes of -y log p - (1 - y) log(1 - p); torch bounds each term by 100."""
    scores = sample['pred_score'].float()
    if 'gt_score' in sample:
        target = sample['gt_score']
    else:
        labels = sample['gt_label']
        for label in labels[(labels < 0) | (labels >= len(scores))].tolist():
            refuse_label(label, len(scores))
        target = label_to_onehot(labels, len(scores))
    return F.binary_cross_entropy(scores, target.to(scores))
