"""Limits on what a subnet may cost, and how much of a space they leave."""

from collections.abc import Callable, Mapping
from math import inf

import numpy as np

from ..errors import UserError
from ..structures import SearchSpace, Subnet
from ..structures.subnet import bounded


class Limits:
    """Which subnets are cheap enough.

    Args:
        constraints: ``{'params': (low, high), ...}``, inclusive; None leaves a side open.
        counters: For each name that a constraint may have, what counts that cost of a subnet.

    Raises:
        UserError: If a constraint names no counter, or is no range.
    """

    SAMPLES = 2000  # by which the share of a space is estimated
    FEW = 0.01  # a share below which a search is told that its limits are narrow

    def __init__(self, constraints: Mapping | None, counters: Mapping[str, Callable]):
        self.counters = counters
        constraints = {} if constraints is None else constraints
        if not isinstance(constraints, Mapping):
            raise UserError(
                f'val_cfg.constraints must be like dict(params=(low, high)), got {constraints!r}'
            )
        self.ranges = {name: self._range(name, limit) for name, limit in constraints.items()}

    def allow(self, subnet: Subnet) -> bool:
        """Whether ``subnet`` is within all limits."""
        return all(
            low <= self.counters[name](subnet) <= high for name, (low, high) in self.ranges.items()
        )

    def costs(self, subnet: Subnet) -> dict[str, float]:
        """All costs of ``subnet``, limited or not."""
        return {name: count(subnet) for name, count in self.counters.items()}

    def survey(self, space: SearchSpace) -> tuple[float, str]:
        """The share of ``space`` within the limits, and a line on it, by random subnets."""
        rng = np.random.default_rng(0)
        passed = sum(self.allow(space.sample(rng)) for _ in range(self.SAMPLES))
        ends = (space.smallest(), space.largest())
        offers = '; '.join(
            f'{name} asked for {low:,.0f} to {high:,.0f}, the space has '
            + ' to '.join(f'{self.counters[name](end):,.0f}' for end in ends)
            for name, (low, high) in self.ranges.items()
        )
        text = f'{passed:,} of {self.SAMPLES:,} random subnets are within the limits: {offers}'
        return passed / self.SAMPLES, text

    def _range(self, name: str, limit) -> tuple[float, float]:
        if name not in self.counters:
            raise UserError(f'constraints.{name} is unknown; choose from {sorted(self.counters)}')
        if not isinstance(limit, (list, tuple)) or len(limit) != 2:
            raise UserError(f'constraints.{name} must be (low, high), got {limit!r}')
        low, high = (
            bounded(default if end is None else end, f'val_cfg.constraints.{name}', inf)
            for end, default in zip(limit, (0.0, inf), strict=True)
        )
        if low > high:
            raise UserError(f'constraints.{name}: low {low:,.0f} is above high {high:,.0f}')
        return low, high
