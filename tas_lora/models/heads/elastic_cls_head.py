"""Linear classifier for features of any width up to its own."""

import torch
from mmpretrain.models.heads import LinearClsHead
from mmpretrain.structures import DataSample
from torch import Tensor

from ...checks import boolean, positive, positives
from ...errors import UserError, blame
from ...registry import MODELS
from ..layers import ElasticLinear, check_weights


def refuse_label(label: int, num_classes: int) -> None:
    """Raise :class:`UserError` about a label that is none of the classes."""
    raise UserError(
        f'the data has the label {label}, but there are {num_classes} classes, 0 to '
        f'{num_classes - 1}; set model.head.num_classes and data_preprocessor.num_classes to '
        'those of the data'
    )


def check_labels(data_samples: list[DataSample], num_classes: int) -> None:
    """Raise :class:`UserError` unless all labels of a batch are from 0 to below ``num_classes``."""
    labels = [sample.gt_label.flatten() for sample in data_samples if 'gt_label' in sample]
    if labels:
        labels = torch.cat(labels)
        wrong = labels[(labels < 0) | (labels >= num_classes)]
        if len(wrong):
            refuse_label(int(wrong[0]), num_classes)


@MODELS.register_module()
class ElasticClsHead(LinearClsHead):
    """MMPretrain's ``LinearClsHead`` whose weight is sliced to the width of the feature.

    Args:
        num_classes: Number of classes.
        in_channels: The supernet's width.
        init_std: Standard deviation of the initial weights; the bias starts at 0.
        topk: As in ``LinearClsHead``.
        cal_acc: As there.
        **kwargs: ``loss`` as there.

    Raises:
        UserError: If an argument is out of range, or on a label that is none of the classes.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        init_std: float = 0.02,
        topk: int | tuple[int, ...] = (1,),
        cal_acc: bool = False,
        **kwargs,
    ):
        positive(num_classes, 'num_classes', int, most=10**6)
        positive(in_channels, 'in_channels', int, most=10**5)
        check_weights(num_classes * in_channels, 'num_classes or in_channels')
        most = num_classes if boolean(cal_acc, 'cal_acc') else None
        positives([topk] if isinstance(topk, int) else topk, 'topk', int, most)
        with blame('cannot be built', ''):
            super().__init__(
                num_classes, in_channels, init_cfg=None, topk=topk, cal_acc=cal_acc, **kwargs
            )
        init_std = positive(init_std, 'init_std', float)
        self.fc = ElasticLinear(in_channels, num_classes, init_std=init_std)

    def loss_of_logits(self, logits: Tensor, data_samples: list[DataSample]) -> dict:
        """As ``loss``, for logits (B, classes) that are at hand."""
        return self._get_loss(logits, data_samples)

    def _get_loss(self, cls_score: Tensor, data_samples: list[DataSample], **kwargs) -> dict:
        if not cls_score.is_cuda:  # else this would wait for the GPU; the classifier has checked
            check_labels(data_samples, self.num_classes)
        return super()._get_loss(cls_score, data_samples, **kwargs)
