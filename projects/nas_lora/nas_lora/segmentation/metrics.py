"""Metrics of predicted masks: Jaccard, Dice, balanced error rate, MAE."""

from collections.abc import Sequence

import numpy as np
from mmengine.evaluator import BaseMetric
from torch import Tensor

from tas_lora import UserError
from tas_lora.checks import bounded, one_of, some_of

from ..registry import METRICS

_METRICS = ('iou', 'dice', 'ber', 'mae')


@METRICS.register_module()
class MaskMetrics(BaseMetric):
    """Jaccard (IoU), Dice, balanced error rate and mean absolute error, all from 0 to 1.

    A pixel is positive if its probability is above ``threshold``. TP, FP, FN and TN are the numbers
    of pixels:

    - ``iou``: TP / (TP + FP + FN); 1 for an image without object in mask and prediction;
    - ``dice``: 2 TP / (2 TP + FP + FN), with the same convention;
    - ``ber``: 1 - (TP / (TP + FN) + TN / (TN + FP)) / 2 over the pixels of all images, as in shadow
      detection;
    - ``mae``: mean of |probability - mask|, without a threshold.

    Processes of a distributed run exchange four counts and an error per image, so the result equals
    that of one process. Images that a sampler repeats to fill its last batch count once.

    Args:
        metrics: Some of 'iou', 'dice', 'ber', 'mae'.
        average: For 'iou' and 'dice': 'image' is the mean over images, as in ISIC 2017; 'dataset'
            is one ratio over the pixels of all images.
        threshold: From 0 to 1.
        collect_device: As in ``BaseMetric``.
        prefix: As in ``BaseMetric``.

    Raises:
        UserError: If an argument is not allowed, or for 'ber' if the images are all object or all
            background.
    """

    default_prefix = ''

    def __init__(
        self,
        metrics: Sequence[str] = _METRICS,
        average: str = 'image',
        threshold: float = 0.5,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ):
        one_of(collect_device, 'MaskMetrics.collect_device', ('cpu', 'gpu'))
        one_of(average, 'MaskMetrics.average', ('image', 'dataset'))
        self.metrics = some_of(metrics, 'MaskMetrics.metrics', _METRICS)
        self.threshold = bounded(threshold, 'MaskMetrics.threshold')
        self.average = average
        super().__init__(collect_device, prefix)

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        """Count the pixels of each image of a batch, from its ``mask`` and ``pred_mask`` (H, W)."""
        for sample in data_samples:
            self.results.append(_counts(sample['pred_mask'], sample['mask'], self.threshold))

    def compute_metrics(self, results: list[tuple[float, ...]]) -> dict[str, float]:
        """Metrics over all images of all ranks."""
        counts = np.array(results, dtype=np.float64)  # (images, 5)
        tp, fp, fn = (counts if self.average == 'image' else counts.sum(0, keepdims=True)).T[:3]
        values = dict(
            iou=lambda: _ratio(tp, tp + fp + fn).mean(),
            dice=lambda: _ratio(2 * tp, 2 * tp + fp + fn).mean(),
            ber=lambda: _balanced_error(*counts.sum(0)[:4]),
            mae=lambda: counts[:, 4].mean(),
        )
        return {name: float(values[name]()) for name in self.metrics}


def _counts(probability: Tensor, mask: Tensor, threshold: float) -> tuple[float, ...]:
    """TP, FP, FN, TN and the mean absolute error of an image."""
    if probability.shape != mask.shape:
        raise UserError(
            f'a predicted mask is {tuple(probability.shape)}, the true one {tuple(mask.shape)}; '
            'let the test pipeline resize image and mask alike'
        )
    found, true = probability > threshold, mask > 0.5
    pairs = ((found & true), (found & ~true), (~found & true), (~found & ~true))
    error = (probability.float() - true.float()).abs().mean()
    return (*(pair.sum().item() for pair in pairs), error.item())


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """``part / whole``; 1 if there is no object and none was found."""
    return np.divide(part, whole, out=np.ones_like(part), where=whole > 0)


def _balanced_error(tp: float, fp: float, fn: float, tn: float) -> float:
    if tp + fn == 0 or tn + fp == 0:
        raise UserError(
            "'ber' needs pixels of objects and of background among the masks; leave it out of "
            'MaskMetrics.metrics, or give other masks'
        )
    return 1 - (tp / (tp + fn) + tn / (tn + fp)) / 2
