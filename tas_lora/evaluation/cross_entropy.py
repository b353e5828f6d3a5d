"""The validation loss, by which subnets are ranked."""

import torch
from mmengine.evaluator import BaseMetric

from ..checks import one_of
from ..errors import UserError
from ..models.heads.elastic_cls_head import refuse_label
from ..registry import METRICS


@METRICS.register_module()
class CrossEntropy(BaseMetric):
    """Mean of -log p(label) over all images, from the scores MMPretrain's heads predict.

    Finer than top-1, which changes in steps of one image. Yields ``cross_entropy``.

    Args:
        collect_device: As in ``BaseMetric``.
        prefix: As in ``BaseMetric``.
        **kwargs: As there.

    Raises:
        UserError: On an argument that is none, or a label that is none of the classes.
    """

    default_prefix = ''

    def __init__(self, collect_device: str = 'cpu', prefix: str | None = None, **kwargs):
        one_of(collect_device, 'collect_device', ('cpu', 'gpu'))
        if prefix is not None and not isinstance(prefix, str):
            raise UserError(f'must be a string or None, got {prefix!r}', 'prefix')
        super().__init__(collect_device, prefix, **kwargs)

    def process(self, data_batch, data_samples) -> None:
        """Collect the loss of each image of a batch."""
        for sample in data_samples:
            label = sample['gt_label'].item()
            if not 0 <= label < len(sample['pred_score']):
                refuse_label(label, len(sample['pred_score']))
            score = sample['pred_score'][label].float()
            # A softmax may round to 0; the loss of an image is then the largest float32 has.
            score = score.clamp_min(torch.finfo(torch.float32).tiny)
            self.results.append(-score.log().item())

    def compute_metrics(self, results: list[float]) -> dict[str, float]:
        """Mean over all images of all ranks."""
        return dict(cross_entropy=sum(results) / len(results))
