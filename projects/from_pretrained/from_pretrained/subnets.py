"""The subnets that every way is tested on."""

import numpy as np

from tas_lora import SearchSpace, Subnet, count_flops

SHARES = dict(half=0.5, quarter=0.25)  # of the original's multiply-adds
COUNT = 2  # of each share
_WITHIN = 0.02  # of the original's multiply-adds
_SEED = 7
_MOST_DRAWS = 100_000


def subnets_of(space: SearchSpace, image_spec: dict) -> dict[str, Subnet]:
    """Random subnets just below each share of the largest one's multiply-adds, and that one."""
    rng, largest = np.random.default_rng(_SEED), space.largest()
    full = count_flops(largest, **image_spec)
    found = {f'{name}_{i}': None for name in SHARES for i in range(1, COUNT + 1)}
    for _ in range(_MOST_DRAWS):
        subnet = space.sample(rng)
        share = count_flops(subnet, **image_spec) / full
        free = [key for key in found if not found[key] and 0 <= SHARES[key[:-2]] - share < _WITHIN]
        if free and subnet not in found.values():
            found[free[0]] = subnet
        if all(found.values()):
            break
    return found | dict(original=largest)
