"""MMPretrain's preprocessing of a batch, without waits of the host."""

import torch
from mmpretrain.models import ClsDataPreprocessor
from mmpretrain.structures import DataSample, batch_label_to_onehot, cat_batch_labels, tensor_split

from ...registry import MODELS


@MODELS.register_module()
class SupernetDataPreprocessor(ClsDataPreprocessor):
    """MMPretrain's ``ClsDataPreprocessor``, whose host does not wait for a GPU.

    There images of one size go in one copy, not each in its own, labels and scores in one more
    each, all from pinned memory, and batch augmentations draw their permutations on the device. All
    values are the same but for these. On a CPU nothing differs.

    Args:
        *args, **kwargs: As in ``ClsDataPreprocessor``.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._non_blocking = True  # MMPretrain's passes no arguments to MMEngine's

    def forward(self, data: dict, training: bool = False) -> dict:
        """As in ``ClsDataPreprocessor``."""
        if self.device.type == 'cpu':
            return super().forward(data, training)
        with self.device:  # where new tensors are made, unless they say otherwise
            return super().forward(self._sent(data), training)

    def _sent(self, data: dict) -> dict:
        """A batch of one tensor of images, if they fit, whose samples' labels are on the device."""
        images, samples = data['inputs'], data.get('data_samples')
        if samples and isinstance(samples[0], DataSample):
            self._send_labels(samples)
        if not _fit_together(images):
            return data
        stacked = torch.empty(
            (len(images), *images[0].shape),
            dtype=images[0].dtype,
            device='cpu',
            pin_memory=self.device.type == 'cuda',
        )
        return data | dict(inputs=torch.stack(list(images), out=stacked))

    def _send_labels(self, samples: list[DataSample]) -> None:
        """Copy labels and scores to the device."""
        labels, splits, scores = None, [], None
        if 'gt_label' in samples[0]:
            labels, splits = cat_batch_labels([sample.gt_label for sample in samples])
        if 'gt_score' in samples[0]:
            scores = torch.stack([sample.gt_score for sample in samples])
        elif self.to_onehot and labels is not None:
            classes = self.num_classes or samples[0].get('num_classes')
            scores = None if classes is None else batch_label_to_onehot(labels, splits, classes)
        if labels is not None:
            sent = tensor_split(self._copied(labels), splits)
            for sample, label in zip(samples, sent, strict=True):
                sample.set_gt_label(label)
        if scores is not None:
            for sample, score in zip(samples, self._copied(scores), strict=True):
                sample.set_gt_score(score)

    def _copied(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor on the device; from memory that is not pinned, the host may wait."""
        if self.device.type == 'cuda' and tensor.device.type == 'cpu':
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


def _fit_together(images) -> bool:
    """Whether they are tensors of the host, of one size and type, that are not stacked yet."""
    if isinstance(images, torch.Tensor) or not all(isinstance(i, torch.Tensor) for i in images):
        return False
    kinds = {(image.device.type, image.dtype, image.shape) for image in images}
    return len(kinds) == 1 and images[0].device.type == 'cpu'
