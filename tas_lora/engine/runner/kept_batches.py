"""Images that are decoded once for all candidates of a search."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import torch
from mmengine.dist import get_world_size

from ...structures.subnet import bounded


class KeptBatches:
    """A dataloader whose batches are read once and kept, if they fit in memory.

    Right for a pipeline without randomness. Images stay as they come, usually as bytes.

    Args:
        dataloader: The dataloader; batches are dicts with ``data_samples``.
        memory_share: The share of the free memory that may be taken, divided among the processes
            of a machine (of all machines, if their launcher does not tell); 0 keeps nothing.

    Raises:
        UserError: If ``memory_share`` is no number from 0 to 1.
    """

    def __init__(self, dataloader, memory_share: float = 0.5):
        memory_share = bounded(memory_share, 'val_cfg.memory_share')
        self.dataloader, self.dataset = dataloader, dataloader.dataset
        processes = int(os.environ.get('LOCAL_WORLD_SIZE', get_world_size()))
        self.limit = memory_share * free_memory() / processes
        self.kept: list[dict] | None = None

    def __len__(self) -> int:
        return len(self.dataloader)

    def __iter__(self) -> Iterator[dict]:
        if self.kept is not None:
            yield from map(_fresh, self.kept)
            return
        kept, fits = [], True
        for batch in self.dataloader:
            fits = fits and size_in_bytes(batch) * len(self) <= self.limit
            if fits:
                kept.append(_own(batch))
            yield _fresh(batch)
        self.kept = kept if fits else None


def free_memory() -> float:
    """Bytes that are free, of the machine or of the container this runs in."""
    free = [psutil.virtual_memory().available]
    limit, used = (Path('/sys/fs/cgroup') / name for name in ('memory.max', 'memory.current'))
    with suppress(OSError, ValueError):  # no cgroup, or one without a limit ('max')
        free.append(int(limit.read_text()) - int(used.read_text()))
    return max(min(free), 0)


def _own(value):
    """A copy without shared memory: loader workers leave their tensors in the small /dev/shm."""
    if isinstance(value, torch.Tensor):
        return value.clone() if value.is_shared() else value
    if isinstance(value, dict):
        return {key: _own(item) for key, item in value.items()}
    return [_own(item) for item in value] if isinstance(value, (list, tuple)) else value


def size_in_bytes(value) -> int:
    """Bytes of all tensors in nested lists and dicts."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(size_in_bytes, value.values()))
    return sum(map(size_in_bytes, value)) if isinstance(value, (list, tuple)) else 0


def _fresh(batch: dict) -> dict:
    """The batch with new data samples: a model writes its predictions into them."""
    samples = batch.get('data_samples', ())  # none in a batch that could not be read
    return batch | {'data_samples': [sample.new() for sample in samples]}
