"""Images that are decoded once for all candidates of a search."""

import os
from collections.abc import Iterator

import psutil
import torch


class KeptBatches:
    """A dataloader whose batches are read once and kept, if they fit in memory.

    Right for a pipeline without randomness. Images stay as they come, usually as bytes.

    Args:
        dataloader: The dataloader.
        memory_share: The share of the free memory that may be taken, divided among the processes
            of a machine; 0 keeps nothing.
    """

    def __init__(self, dataloader, memory_share: float = 0.5):
        self.dataloader, self.dataset = dataloader, dataloader.dataset
        processes = int(os.environ.get('LOCAL_WORLD_SIZE', 1))
        self.limit = memory_share * psutil.virtual_memory().available / processes
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
                kept.append(batch)
            yield _fresh(batch)
        self.kept = kept if fits else None


def size_in_bytes(value) -> int:
    """Bytes of all tensors in nested lists and dicts."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(size_in_bytes, value.values()))
    return sum(map(size_in_bytes, value)) if isinstance(value, (list, tuple)) else 0


def _fresh(batch: dict) -> dict:
    """The batch with new data samples: a model writes its predictions into them."""
    return batch | {'data_samples': [sample.new() for sample in batch['data_samples']]}
