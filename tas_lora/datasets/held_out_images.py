"""The images that candidates are scored on, by index, decoded once for all of them."""

import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import torch
from mmengine.dataset import BaseDataset
from mmengine.dist import get_world_size
from torch.utils.data import DataLoader

from ..checks import bounded
from ..errors import UserError
from .replay import UNREADABLE, ReplayDataset, check_readable


class _Chosen:
    """A batch sampler that is told what to draw."""

    def __init__(self, batch_size: int):
        self.batch_size, self.indices = batch_size, []

    def __iter__(self) -> Iterator[list[int]]:
        yield from _chunks(self.indices, self.batch_size)


class HeldOutImages:
    """Batches of chosen images of a dataset, the same on every rank.

    Images are kept as they come from the pipeline, usually as bytes, if all of them fit in
    memory; else they are decoded anew each time. Right for a pipeline without randomness.

    Args:
        dataloader: Its dataset, batch size, collation and workers are used, its order is not.
        memory_share: The share of the free memory that may be taken, divided among the processes
            of a machine (of all machines, if their launcher does not tell); 0 keeps nothing.

    Raises:
        UserError: If ``memory_share`` is no number from 0 to 1, or the dataloader has no batch
            size.
    """

    def __init__(self, dataloader: DataLoader, memory_share: float = 0.5):
        memory_share = bounded(memory_share, 'memory_share')
        if dataloader.batch_size is None:
            raise UserError(
                'is of no use: images are chosen by index; leave it out, and set batch_size',
                'batch_sampler',
            )
        processes = int(os.environ.get('LOCAL_WORLD_SIZE', get_world_size()))
        self.limit = memory_share * free_memory() / processes
        self.dataset, self.collate = dataloader.dataset, dataloader.collate_fn
        self.batch_size = dataloader.batch_size
        self.chosen = _Chosen(self.batch_size)
        self.loader = _like(dataloader, self.chosen)
        self.kept: dict[int, dict] | None = {}
        self.bytes = 0

    def __len__(self) -> int:
        """Number of images."""
        return len(self.dataset)

    def fingerprint(self) -> str:
        """How many images there are, and a checksum of their labels and file names."""
        described = 0
        data = self.dataset.dataset if isinstance(self.dataset, ReplayDataset) else self.dataset
        if isinstance(data, BaseDataset):
            for index in range(len(data)):
                info = data.get_data_info(index)
                text = f'{info.get("gt_label")} {Path(str(info.get("img_path", ""))).name}'
                described = zlib.crc32(text.encode(), described)
        return f'{len(self):,}, checksum {described:08x}'

    def batches(self, indices: Sequence[int] | None = None) -> Iterator[dict]:
        """Batches of the images with these indices, or of all, in order.

        Raises:
            UserError: Naming an image that cannot be read.
        """
        wanted = range(len(self)) if indices is None else [int(index) for index in indices]
        for samples in self._samples(wanted):
            yield self.collate([_fresh(sample) for sample in samples])

    def _samples(self, wanted: Sequence[int]) -> Iterator[list[dict]]:
        if self.kept is not None and all(index in self.kept for index in wanted):
            for chunk in _chunks(wanted, self.batch_size):
                yield [self.kept[index] for index in chunk]
            return
        self.chosen.indices = wanted
        for chunk, samples in zip(_chunks(wanted, self.batch_size), self.loader, strict=True):
            for sample in samples:
                if UNREADABLE in sample:
                    check_readable({UNREADABLE: [sample[UNREADABLE]]})
            self._keep(chunk, samples)
            yield samples

    def _keep(self, chunk: Sequence[int], samples: list[dict]) -> None:
        """Keep samples, unless all images would be too many by what has come so far."""
        if self.kept is None:
            return
        for index, sample in zip(chunk, samples, strict=True):
            if index not in self.kept:
                self.kept[index] = _own(sample)
                self.bytes += size_in_bytes(sample)
        if self.bytes / len(self.kept) * len(self) > self.limit:
            self.kept = None


def free_memory() -> float:
    """Bytes that are free, of the machine or of the container this runs in."""
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


def _like(dataloader: DataLoader, chosen: _Chosen) -> DataLoader:
    """A dataloader of lists of samples that are chosen anew each time."""
    workers = dataloader.num_workers
    return DataLoader(
        dataloader.dataset,
        batch_sampler=chosen,
        num_workers=workers,
        collate_fn=list,
        pin_memory=False,  # samples are collated later
        timeout=dataloader.timeout,
        worker_init_fn=dataloader.worker_init_fn,
        multiprocessing_context=dataloader.multiprocessing_context,
        prefetch_factor=dataloader.prefetch_factor,
        persistent_workers=workers > 0,  # an order of few images must not cost a start
    )


def _chunks(indices: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (indices[start : start + size] for start in range(0, len(indices), size))


def _own(value):
    """A copy without shared memory: loader workers leave their tensors in the small /dev/shm."""
    if isinstance(value, torch.Tensor):
        return value.clone() if value.is_shared() else value
    if isinstance(value, dict):
        return {key: _own(item) for key, item in value.items()}
    return [_own(item) for item in value] if isinstance(value, (list, tuple)) else value


def _fresh(sample: dict) -> dict:
    """The sample with new data samples: a model writes its predictions into them."""
    return sample | {'data_samples': sample['data_samples'].new()}
