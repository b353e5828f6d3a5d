"""Which widths a device computes fast."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F

from .timing import interleave

MULTIPLES = (8, 16, 32, 64)
_ENOUGH = 0.9  # of the best rate
_ABOUT = (384, 768, 1152)  # widths of ViTs


def linear_rates(
    device: str,
    multiples: Sequence[int] = MULTIPLES,
    tokens: int | None = None,
    rounds: int = 30,
    dtype: torch.dtype | None = None,
) -> dict[int, float]:
    """Multiply-adds per second of linear layers, relative to the fastest, for each multiple.

    The layers of multiple m are as wide as odd multiples of m next to usual widths, so that no
    larger power of two divides them.

    Args:
        device: 'cpu' or 'cuda'.
        multiples: Powers of two.
        tokens: Rows of the input; by default 256, on a GPU 16384, which keep it busy.
        rounds: Timed runs of each; the fastest counts, since other load can only slow one down.
        dtype: By default bfloat16 on a GPU, else float32.
    """
    on_gpu = device.startswith('cuda')
    dtype = dtype or (torch.bfloat16 if on_gpu else torch.float32)
    tokens = tokens or (16384 if on_gpu else 256)
    jobs, work = {}, {}
    for multiple in multiples:
        for about in _ABOUT:
            width = max(1, round((about / multiple - 1) / 2) * 2 + 1) * multiple
            x = torch.randn(tokens, width, device=device, dtype=dtype)
            weight = torch.randn(width, width, device=device, dtype=dtype)
            name = f'{multiple} {about}'
            jobs[name], work[name] = partial(F.linear, x, weight), tokens * width**2
    seconds = interleave(jobs, rounds, device)
    rates = {m: sum(work[f'{m} {a}'] / min(seconds[f'{m} {a}']) for a in _ABOUT) for m in multiples}
    return {m: rate / max(rates.values()) for m, rate in rates.items()}


def fast_multiple(device: str, **options) -> tuple[int, dict[int, float]]:
    """The smallest of 8, 16, 32 and 64 whose multiples are fast, and :func:`linear_rates`.

    Fast is at least nine tenths of the best rate.
    """
    rates = linear_rates(device, **options)
    return next(m for m in sorted(rates) if rates[m] >= _ENOUGH), rates
