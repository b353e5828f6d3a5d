"""The images that candidates are scored on, by index, decoded only once."""

import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import torch
from mmengine.dataset import RepeatDataset
from torch.utils.data import DataLoader

from ..checks import bounded
from ..errors import UserError
from .replay import UNREADABLE, ReplayDataset, check_readable


class HeldOutImages:
    """Batches of chosen images of a dataset.

    If all images fit in memory, they are kept as the pipeline returns them, usually as bytes;
    else they are decoded each time. The pipeline must not be random.

    Args:
        dataloader: Provides dataset, batch size, collation and workers; its order is ignored.
        memory_share: Share of the free memory that may be used; 0 keeps nothing.

    Raises:
        UserError: If ``memory_share`` is not a number from 0 to 1, or the dataloader has no batch
            size.
    """

    def __init__(self, dataloader: DataLoader, memory_share: float = 0.5):
        memory_share = bounded(memory_share, 'memory_share')
        if dataloader.batch_size is None:
            raise UserError(
                'has no effect: images are chosen by index; remove it, and set batch_size',
                'batch_sampler',
            )
        self.limit = memory_share * free_memory()
        self.dataset, self.collate = dataloader.dataset, dataloader.collate_fn
        self.batch_size = dataloader.batch_size
        self.chosen: list[Sequence[int]] = []  # batches of indices, changed in place
        self.loader = DataLoader(
            dataloader.dataset,
            batch_sampler=self.chosen,
            num_workers=dataloader.num_workers,
            collate_fn=list,
            pin_memory=False,  # samples are collated later
            timeout=dataloader.timeout,
            worker_init_fn=dataloader.worker_init_fn,
            multiprocessing_context=dataloader.multiprocessing_context,
            prefetch_factor=dataloader.prefetch_factor,
            persistent_workers=dataloader.num_workers > 0,  # small requests reuse them
        )
        self.kept: dict[int, dict] | None = {}
        self.bytes = 0

    def __len__(self) -> int:
        """Number of images."""
        return len(self.dataset)

    def fingerprint(self) -> str:
        """The number of images, and a checksum of their labels and file names."""
        return fingerprint(self.dataset)

    def batches(self, indices: Sequence[int] | None = None) -> Iterator[dict]:
        """Yield batches of the images with these indices, or of all, in order.

        Raises:
            UserError: Naming an image that cannot be read.
        """
        wanted = range(len(self)) if indices is None else [int(index) for index in indices]
        for samples in self._samples(wanted):
            # New data samples, since a model writes its predictions into them.
            yield self.collate([s | {'data_samples': s['data_samples'].new()} for s in samples])

    def decoded(self) -> list[dict] | None:
        """All samples as the pipeline returns them, not kept here; None if they do not fit."""
        for _ in self._samples(range(len(self))):
            if self.kept is None:
                return None
        kept, self.kept, self.bytes = self.kept, {}, 0
        return [kept[index] for index in range(len(self))]

    def adopt(self, samples: Sequence[dict]) -> None:
        """Keep samples that were decoded elsewhere, instead of decoding any here."""
        self.kept = dict(enumerate(samples))

    def _samples(self, wanted: Sequence[int]) -> Iterator[list[dict]]:
        size = self.batch_size
        chunks = [wanted[start : start + size] for start in range(0, len(wanted), size)]
        if self.kept is not None and all(index in self.kept for index in wanted):
            yield from ([self.kept[index] for index in chunk] for chunk in chunks)
            return
        self.chosen[:] = chunks
        for chunk, samples in zip(chunks, self.loader, strict=True):
            for sample in samples:
                if UNREADABLE in sample:
                    check_readable({UNREADABLE: [sample[UNREADABLE]]})
            self._keep(chunk, samples)
            yield samples

    def _keep(self, chunk: Sequence[int], samples: list[dict]) -> None:
        """Keep samples, unless their mean size so far says that all images will not fit."""
        if self.kept is None:
            return
        for index, sample in zip(chunk, samples, strict=True):
            if index not in self.kept:
                self.kept[index] = _own(sample)
                self.bytes += size_in_bytes(sample)
        if self.bytes / len(self.kept) * len(self) > self.limit:
            self.kept = None


def fingerprint(dataset) -> str:
    """The number of images, and a checksum of their labels and file names, in order.

    Images that a dataset repeats count once. Of datasets that are not MMEngine's only the number
    is known.
    """
    while isinstance(dataset, (ReplayDataset, RepeatDataset)):
        dataset = dataset.dataset
    described = 0
    for index in range(len(dataset)) if hasattr(dataset, 'get_data_info') else ():
        info = dataset.get_data_info(index)
        text = f'{info.get("gt_label")} {Path(str(info.get("img_path", ""))).name}'
        described = zlib.crc32(text.encode(), described)
    return f'{len(dataset):,}, checksum {described:08x}'


def free_memory() -> float:
    """Free memory in bytes, of the machine or of the container."""
    free = [psutil.virtual_memory().available]
    limit, used = (Path('/sys/fs/cgroup') / name for name in ('memory.max', 'memory.current'))
    with suppress(OSError, ValueError):  # no cgroup, or one without a limit ('max')
        free.append(int(limit.read_text()) - int(used.read_text()))
    return max(min(free), 0)


def size_in_bytes(value) -> int:
    """Bytes of all tensors in nested lists and dicts."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(size_in_bytes, value.values()))
    return sum(map(size_in_bytes, value)) if isinstance(value, (list, tuple)) else 0


def _own(value):
    """Copy tensors out of shared memory: loader workers leave them in the small /dev/shm."""
    if isinstance(value, torch.Tensor):
        return value.clone() if value.is_shared() else value
    if isinstance(value, dict):
        return {key: _own(item) for key, item in value.items()}
    return [_own(item) for item in value] if isinstance(value, (list, tuple)) else value
