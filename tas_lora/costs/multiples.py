"""Which widths a device computes fast."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from .timing import interleave, ratio

MULTIPLES = (8, 16, 32, 64)
_ENOUGH = 0.9  # of the speed of multiples of 64


def fast_multiple(
    device: str,
    widths: Sequence[tuple[int, int]] = ((384, 384), (768, 768), (1152, 1152)),
    tokens: int | None = None,
    rounds: int = 30,
    dtype: torch.dtype | None = None,
) -> tuple[int, dict[int, dict]]:
    """The smallest of 8, 16, 32 and 64 whose multiples are fast, and the speeds of all.

    Linear layers are timed, each as wide as the largest multiple of 8 (16, ...) within its width
    that is not one of 16 (32, ...). A speed is multiply-adds per second, as a share of those with
    multiples of 64 in the same round. Multiples of 16 are multiples of 8 too, so no speed counts
    for more than those of larger multiples. Fast is nine tenths, with the noise in favour of the
    smaller multiple.

    Args:
        device: 'cpu' or 'cuda'.
        widths: Input and output widths of the layers.
        tokens: Rows of the input; by default 256, on a GPU 16384, which keep it busy.
        rounds: Timed runs of each layer.
        dtype: By default bfloat16 on a GPU, else float32.

    Returns:
        The multiple, and for each its speed: median and middle half over the rounds.
    """
    on_gpu = device.startswith('cuda')
    options = dict(device=device, dtype=dtype or (torch.bfloat16 if on_gpu else torch.float32))
    tokens = tokens or (16384 if on_gpu else 256)
    jobs, work = {}, dict.fromkeys(MULTIPLES, 0)
    for multiple in MULTIPLES:
        for i, (inner, outer) in enumerate(widths):
            odd = max(1, (outer // multiple - 1) // 2 * 2 + 1)
            layer = (
                torch.randn(tokens, inner, **options),
                torch.randn(odd * multiple, inner, **options),
            )
            jobs[f'{multiple} {i}'] = partial(F.linear, *layer)
            work[multiple] += odd * multiple * inner
    seconds = interleave(jobs, rounds, device)
    each = {
        m: sum(np.array(seconds[f'{m} {i}']) for i in range(len(widths))) / work[m]
        for m in MULTIPLES
    }
    speeds, most = {}, dict(median=1.0, spread=[1.0, 1.0])
    for multiple in reversed(MULTIPLES):
        own = ratio(each[64], each[multiple])
        spread = [min(pair) for pair in zip(own['spread'], most['spread'], strict=True)]
        most = dict(median=min(own['median'], most['median']), spread=spread)
        speeds[multiple] = most
    fast = [m for m in MULTIPLES if speeds[m]['spread'][1] >= _ENOUGH]
    return fast[0], {m: speeds[m] for m in MULTIPLES}
