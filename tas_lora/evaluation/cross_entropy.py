"""The validation loss, by which subnets are ranked."""

import torch
from mmengine.evaluator import BaseMetric

from ..registry import METRICS


@METRICS.register_module()
class CrossEntropy(BaseMetric):
    """Mean of -log p(label) over all images, from the scores MMPretrain's heads predict.

    Finer than top-1, which changes in steps of one image. Yields ``cross_entropy``.

    Args:
        collect_device: As in ``BaseMetric``.
        prefix: As in ``BaseMetric``.
    """

    default_prefix = ''

    def process(self, data_batch, data_samples) -> None:
        """Collect the loss of each image of a batch."""
        for sample in data_samples:
            label = sample['gt_label'].item()
            score = sample['pred_score'][label].float()
            # A softmax may round to 0; the loss of an image is then the largest float32 has.
            score = score.clamp_min(torch.finfo(torch.float32).tiny)
            self.results.append(-score.log().item())

    def compute_metrics(self, results: list[float]) -> dict[str, float]:
        """Mean over all images of all ranks."""
        return dict(cross_entropy=sum(results) / len(results))
