"""Timing on a noisy machine: contestants take turns, and are compared round by round."""

import time
from collections.abc import Callable, Mapping
from statistics import median

import numpy as np
import torch
from torch import nn


def interleave(
    jobs: Mapping[str, Callable[[], object]], rounds: int, device: str = 'cpu'
) -> dict[str, list[float]]:
    """Run all jobs in turn, ``rounds`` times after one warm-up; returns the seconds of each run.

    A temporary slowdown affects the whole round, so ratios within rounds hold. Each round starts
    with another job, so no job always follows the same one.
    """
    seconds, names = {name: [] for name in jobs}, list(jobs)
    for turn in range(rounds + 1):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            taken = stopwatch(jobs[name], device)
            if turn:
                seconds[name].append(taken)
    return seconds


def stopwatch(job: Callable[[], object], device: str = 'cpu') -> float:
    """Seconds that a job takes, including what it queues on the device."""
    _wait(device)
    start = time.perf_counter()
    job()
    _wait(device)
    return time.perf_counter() - start


def ratio(ours: list[float], theirs: list[float]) -> dict:
    """Median and middle half of the ratios within rounds."""
    return _summary([one / other for one, other in zip(ours, theirs, strict=True)])


def milliseconds(seconds: list[float]) -> dict:
    """Median and middle half, in milliseconds."""
    return _summary([1e3 * value for value in seconds])


def per_second(amount: float, seconds: list[float]) -> dict:
    """``amount`` per second: at the median of the runs' seconds, and at their middle half."""
    found = _summary(seconds)
    slow, fast = (amount / bound for bound in reversed(found['spread']))
    return dict(median=amount / found['median'], spread=[slow, fast])


def _summary(values: list[float]) -> dict:
    low, high = np.quantile(values, [0.25, 0.75]).tolist()
    return dict(median=median(values), spread=[low, high])


def saved_bytes(model: nn.Module, loss: Callable[[], torch.Tensor]) -> int:
    """Bytes that autograd keeps for one backward, counting each storage once.

    Parameters and buffers do not count. What is computed from them does, such as merged weights
    and, under autocast, weights cast to lower precision.
    """
    weights = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (
                storage.nbytes(),
                tensor,
            )  # keeps the tensor alive, or its address would be reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = loss()
    del value
    return sum(size for size, _ in kept.values())


def matrix_rate(device: str, dtype: torch.dtype, rounds: int = 10, patience: float = 0.5) -> float:
    """Multiply-adds per second that the device reaches on one large matrix product.

    Takes the fastest of the rounds: other load can only lower the rate. The product is as large as
    takes ``patience`` seconds, at most 2048 on a side on a CPU and 8192 on a GPU: a processor
    without arithmetic in ``dtype`` takes hundreds of times as long as with it.
    """
    largest, side = (8192, 1024) if device.startswith('cuda') else (2048, 256)
    seconds = _product_seconds(device, dtype, side, 1)
    while side < largest and 8 * seconds < patience:
        side *= 2
        seconds = _product_seconds(device, dtype, side, 1)
    rounds = max(1, min(rounds, int(rounds * patience / seconds)))
    return side**3 / _product_seconds(device, dtype, side, rounds)


def slowdown(dtype: torch.dtype, side: int = 256) -> tuple[float, float]:
    """Time of a product in ``dtype`` relative to float32, and the multiply-adds per second there.

    Measured on the CPU in milliseconds, on a product so small that even a processor without
    arithmetic in ``dtype`` ends it in a tenth of a second.
    """
    low, single = (_product_seconds('cpu', kind, side, 3) for kind in (dtype, torch.float32))
    return low / single, side**3 / single


def _product_seconds(device: str, dtype: torch.dtype, side: int, rounds: int) -> float:
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return min(interleave(dict(product=lambda: a @ b.T), rounds, device)['product'])


def _wait(device: str) -> None:
    if device.startswith('cuda'):
        torch.cuda.synchronize()
