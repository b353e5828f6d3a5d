"""Checks that a model, its data and its metrics agree on how many labels an image has."""

import numpy as np
from mmengine.evaluator import Evaluator
from mmpretrain.evaluation import Accuracy, ConfusionMatrix, SingleLabelMetric
from torch.utils.data import Dataset

from ...datasets.replay import ReplayDataset
from ...errors import UserError
from ...models import SupernetClassifier
from ...models.heads.elastic_cls_head import labels_are_checked, refuse_several

_OF_ONE_LABEL = (Accuracy, ConfusionMatrix, SingleLabelMetric)


def check_dataset(model: SupernetClassifier, dataset: Dataset, field: str) -> None:
    """Refuse data with lists of labels for a head that gives one class, and the reverse.

    Looks at the first image; the model checks the labels of every batch.

    Args:
        model: The supernet.
        dataset: A dataset; those that describe no images are not checked.
        field: Its place in the config, for the message.
    """
    data = dataset.dataset if isinstance(dataset, ReplayDataset) else dataset
    if not labels_are_checked(model.head) or not hasattr(data, 'get_data_info') or not len(data):
        return
    label, head = data.get_data_info(0).get('gt_label'), type(model.head).__name__
    if label is None:
        return
    if np.ndim(label) and not model.is_multi_label:
        refuse_several(list(label), head, field)
    if not np.ndim(label) and model.is_multi_label:
        raise UserError(
            f'{field}: an image has the label {label}, but model.head, a {head}, takes a list of '
            "labels; set model.head.type='tas_lora.ElasticClsHead', or give lists as in "
            "MMPretrain's MultiLabelDataset"
        )


def check_metrics(model: SupernetClassifier, evaluator: Evaluator, field: str) -> None:
    """Refuse metrics that cannot be computed from what the head predicts.

    Args:
        model: The supernet.
        evaluator: Its metrics.
        field: Place of the evaluator in the config, for the message.
    """
    if not labels_are_checked(model.head):
        return
    classes = model.head.num_classes
    for metric in evaluator.metrics:
        name = type(metric).__name__
        if model.is_multi_label and isinstance(metric, _OF_ONE_LABEL):
            raise UserError(
                f'{field}: {name} is for images with one label, model.head is a '
                f'{type(model.head).__name__}; use MultiLabelMetric or AveragePrecision'
            )
        if isinstance(metric, Accuracy) and max(metric.topk, default=0) > classes:
            raise UserError(
                f'{field}: topk of {name} is {metric.topk}, but there are {classes} classes; '
                'lower it'
            )
