"""Linear classifier for features of any width up to its own."""

from mmpretrain.models.heads import LinearClsHead
from mmpretrain.structures import DataSample
from torch import Tensor

from ...registry import MODELS
from ..layers import ElasticLinear


@MODELS.register_module()
class ElasticClsHead(LinearClsHead):
    """MMPretrain's ``LinearClsHead`` whose weight is sliced to the width of the feature.

    Args:
        num_classes: Number of classes.
        in_channels: The supernet's width.
        init_std: Standard deviation of the initial weights; the bias starts at 0.
        **kwargs: ``loss``, ``topk``, ``cal_acc`` as in ``LinearClsHead``.
    """

    def __init__(self, num_classes: int, in_channels: int, init_std: float = 0.02, **kwargs):
        super().__init__(num_classes, in_channels, init_cfg=None, **kwargs)
        self.fc = ElasticLinear(in_channels, num_classes, init_std=init_std)

    def loss_of_logits(self, logits: Tensor, data_samples: list[DataSample]) -> dict:
        """As ``loss``, for logits (B, classes) that are at hand."""
        return self._get_loss(logits, data_samples)
