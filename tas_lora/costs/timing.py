"""Timing that survives a noisy machine: contestants take turns, and are compared round by round."""

import time
from collections.abc import Callable, Mapping
from statistics import median

import numpy as np
import torch
from torch import nn


def interleave(
    jobs: Mapping[str, Callable[[], object]], rounds: int, device: str = 'cpu'
) -> dict[str, list[float]]:
    """Run all jobs in turn, ``rounds`` times after one warm-up; seconds of each run.

    What slows the machine for a while slows all of a round, so that ratios within rounds hold.
    Each round begins with another job, so that none has the same one before it every time.
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
    """Seconds a job takes, until the device is done with it."""
    _wait(device)
    start = time.perf_counter()
    job()
    _wait(device)
    return time.perf_counter() - start


def ratio(ours: list[float], theirs: list[float]) -> dict:
    """Median of the ratios within rounds, and their spread, the middle half."""
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    low, high = np.quantile(ratios, [0.25, 0.75])
    return dict(median=median(ratios), spread=[float(low), float(high)])


def milliseconds(seconds: list[float]) -> dict:
    """Median and middle half, in milliseconds."""
    low, high = np.quantile(seconds, [0.25, 0.75])
    return dict(median=1e3 * median(seconds), spread=[1e3 * float(low), 1e3 * float(high)])


def per_second(amount: float, seconds: list[float]) -> dict:
    """Median and middle half of ``amount`` over the seconds of each run."""
    low, high = np.quantile(seconds, [0.25, 0.75])
    return dict(median=amount / median(seconds), spread=[amount / float(high), amount / float(low)])


def saved_bytes(model: nn.Module, loss: Callable[[], torch.Tensor]) -> int:
    """Bytes that autograd keeps for one backward, each storage once.

    Parameters and buffers are not counted; what is computed from them is, such as merged weights
    and, under autocast, weights at lower precision.
    """
    weights = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, or its place is reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = loss()
    del value
    return sum(size for size, _ in kept.values())


def matrix_rate(device: str, dtype: torch.dtype, rounds: int = 10) -> float:
    """Multiply-accumulates a second that the device reaches on one large matrix product.

    The fastest of the rounds: other load lowers the rate, nothing raises it.
    """
    side = 8192 if device.startswith('cuda') else 2048
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = interleave(dict(product=lambda: a @ b), rounds, device)['product']
    return side**3 / min(seconds)


def _wait(device: str) -> None:
    if device.startswith('cuda'):
        torch.cuda.synchronize()
