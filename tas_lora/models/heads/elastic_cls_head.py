"""Linear classifiers for features of any width up to their own."""

import torch
import torch.nn.functional as F
from mmpretrain.models.heads import (
    ClsHead,
    LinearClsHead,
    MultiLabelClsHead,
    MultiLabelLinearClsHead,
    VisionTransformerClsHead,
)
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from ...checks import boolean, positive, positives
from ...errors import UserError, blame
from ...registry import MODELS
from ..layers import check_weights
from ..layers.elastic import slice_parts


def refuse_label(label: int, num_classes: int) -> None:
    """Raise :class:`UserError` about a label that is not among the classes."""
    raise UserError(
        f'the data has the label {label}, but there are {num_classes} classes, 0 to '
        f'{num_classes - 1}; set model.head.num_classes and data_preprocessor.num_classes to '
        'those of the data'
    )


def refuse_several(labels: list[int], head: str, where: str = 'the data') -> None:
    """Raise :class:`UserError` about an image that has other than one label."""
    raise UserError(
        f'{where}: an image has the labels {labels}, but model.head, a {head}, gives each image '
        "one class; set model.head.type='MultiLabelLinearClsHead', or give each image one label"
    )


def check_labels(data_samples: list[DataSample], head: nn.Module) -> None:
    """Raise :class:`UserError` unless the labels of a batch are classes of ``head``.

    With a head for one label, each image must have exactly one.
    """
    labels, num_classes = [], head.num_classes
    for sample in data_samples:
        if 'gt_label' in sample:
            labels.append(sample.gt_label.flatten())
            if len(labels[-1]) != 1 and not isinstance(head, MultiLabelClsHead):
                where = sample.get('img_path', 'the data')
                refuse_several(labels[-1].tolist(), type(head).__name__, where)
    if labels:
        labels = torch.cat(labels)
        wrong = labels[(labels < 0) | (labels >= num_classes)]
        if len(wrong):
            refuse_label(int(wrong[0]), num_classes)


class SlicedLinear(nn.Linear):
    """An ordinary linear layer that takes narrower features, by the first columns of each part.

    Args:
        in_features, out_features: As in ``nn.Linear``.
        parts: Vectors of equal width that make up the input.
    """

    def __init__(self, in_features: int, out_features: int, parts: int = 1):
        super().__init__(in_features, out_features)
        self.parts = parts

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., i) to (..., O)."""
        return F.linear(x, self.sliced_weight(x.shape[-1]), self.bias)

    def sliced_weight(self, in_features: int) -> Tensor:
        """The weight in use for inputs of this width, (O, i)."""
        return slice_parts(self.weight, in_features, self.parts)


def final_linear(head: nn.Module) -> nn.Module | None:
    """The one linear layer of a head that maps features to logits; None of other heads."""
    if isinstance(head, VisionTransformerClsHead):
        return head.layers.head if head.hidden_dim is None else None
    return head.fc if isinstance(head, (LinearClsHead, MultiLabelLinearClsHead)) else None


def slice_head(head: nn.Module, parts: int) -> None:
    """Let a linear head of MMPretrain take features of any width up to its own, in place.

    A feature is made up of ``parts`` vectors of the network's width.
    """
    layer = final_linear(head)
    if type(layer) is nn.Linear:
        sliced = SlicedLinear(layer.in_features, layer.out_features, parts)
        sliced.load_state_dict(layer.state_dict())
        if isinstance(head, VisionTransformerClsHead):
            head.layers.head = sliced
        else:
            head.fc = sliced


def labels_are_checked(head: nn.Module | None) -> bool:
    """Whether a head classifies, so that :func:`check_labels` applies."""
    return isinstance(head, (ClsHead, MultiLabelClsHead)) and hasattr(head, 'num_classes')


@MODELS.register_module()
class ElasticClsHead(LinearClsHead):
    """MMPretrain's ``LinearClsHead`` whose weight is sliced to the width of the feature.

    Args:
        num_classes: Number of classes.
        in_channels: Width of the supernet's features.
        parts: Vectors of the supernet's width in a feature; 2 for ``out_type='cls_avg'``.
        init_std: Standard deviation of the initial weights; the bias starts at 0.
        topk, cal_acc, **kwargs: As in ``LinearClsHead``.

    Raises:
        UserError: If an argument is out of range, or a label is not among the classes.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        parts: int = 1,
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
        if in_channels % positive(parts, 'parts', int):
            raise UserError(f'is {in_channels}, which is not {parts} equal parts', 'in_channels')
        with torch.random.fork_rng(devices=()):  # initialised below
            self.fc = SlicedLinear(in_channels, num_classes, parts)
        nn.init.trunc_normal_(self.fc.weight, std=init_std)
        nn.init.zeros_(self.fc.bias)

    def _get_loss(self, cls_score: Tensor, data_samples: list[DataSample], **kwargs) -> dict:
        if not cls_score.is_cuda:  # on a GPU this would wait; the classifier checks before
            check_labels(data_samples, self)
        return super()._get_loss(cls_score, data_samples, **kwargs)
