"""Images in memory, augmented by the batch."""

import torch
from mmengine.registry import DATASETS, FUNCTIONS
from mmpretrain.structures import DataSample
from torch import Tensor

from tas_lora import UserError
from tas_lora.checks import positive


def read_images(dataset: dict, count: int | None = None) -> tuple[Tensor, Tensor]:
    """The first images of a data set, and their labels.

    Args:
        dataset: Config of a data set that gives 8-bit images of one channel, its pipeline empty.
        count: How many; all if None.

    Returns:
        Images (N, 1, side, side), bytes, and labels (N,).

    Raises:
        UserError: If the data set has fewer.
    """
    whole = DATASETS.build(dataset)
    count = len(whole) if count is None else positive(count, 'InMemoryImages.count', int)
    if count > len(whole):
        raise UserError(
            f'InMemoryImages.count is {count:,}, the data set has {len(whole):,} images; lower it'
        )
    samples = [whole[i] for i in range(count)]
    images = torch.stack([torch.tensor(sample['img']) for sample in samples])
    return images[:, None], torch.tensor([int(sample['gt_label']) for sample in samples])


@DATASETS.register_module()
class InMemoryImages(torch.utils.data.Dataset):
    """A data set read once; what it gives is not augmented, that is :func:`shift_flip_collate`'s.

    Args:
        dataset: As in :func:`read_images`.
        count: As there.
    """

    def __init__(self, dataset: dict, count: int | None = None):
        self.images, labels = read_images(dataset, count)
        self.samples = [DataSample().set_gt_label(label) for label in labels]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        return dict(inputs=self.images[index], data_samples=self.samples[index])


@FUNCTIONS.register_module()
def shift_flip_collate(batch: list[dict], shift: int = 1, flip: float = 0.5) -> dict:
    """A batch of images, each shifted and mirrored at random, black where nothing was.

    Args:
        batch: Samples of :class:`InMemoryImages`.
        shift: Most pixels of a shift, in both directions; all shifts are equally likely.
        flip: Probability of mirroring left to right.

    Returns:
        ``inputs``, bytes (B, 1, side, side), and ``data_samples``.
    """
    images = torch.stack([sample['inputs'] for sample in batch])
    images = shifted(images, torch.randint(-shift, shift + 1, (len(images), 2)))
    mirrored = torch.rand(len(images)) < flip
    images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    return dict(inputs=images, data_samples=[sample['data_samples'] for sample in batch])


def shifted(images: Tensor, offsets: Tensor) -> Tensor:
    """Images (B, C, H, W) moved by their ``offsets`` (B, 2), down and right in pixels."""
    B, _, H, W = images.shape
    rows = torch.arange(H) - offsets[:, :1]  # (B, H): where each row comes from
    columns = torch.arange(W) - offsets[:, 1:]
    inside = ((rows >= 0) & (rows < H))[:, :, None] & ((columns >= 0) & (columns < W))[:, None, :]
    taken = images[
        torch.arange(B)[:, None, None],
        :,
        rows.clamp(0, H - 1)[:, :, None],
        columns.clamp(0, W - 1)[:, None, :],
    ]  # (B, H, W, C)
    return (taken * inside[..., None]).movedim(-1, 1)
