"""Limits on what a subnet may cost, and the share of a space within them."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from math import inf

import numpy as np

from ..checks import bounded, within
from ..errors import UserError
from ..structures import SearchSpace, Subnet

UNITS = dict(latency='ms', memory='MiB')  # of costs that must be measured


class Limits:
    """Decide which subnets are cheap enough.

    Counted costs are checked first. Only a subnet within those limits is measured, and only once.

    Args:
        constraints: ``{'params': (low, high), ...}``, inclusive; None leaves a side open.
        counters: Functions that count a cost, by its name; they must be fast.
        measured: Functions that measure a cost: ``latency`` in ms, ``memory`` in MiB.
        goals: Names of the costs that a search minimises. A measured cost that is limited or a
            goal is measured for every subnet that is scored.

    Raises:
        UserError: If a constraint does not name a cost, or is not a range.
    """

    SAMPLES = 2000  # random subnets to estimate the share of a space
    MEASURED = 20  # at most this many of them are measured
    FEW = 0.01  # below this share a search warns that its limits are narrow

    def __init__(
        self,
        constraints: Mapping | None,
        counters: Mapping[str, Callable[[Subnet], float]],
        measured: Mapping[str, Callable[[Subnet], float]] | None = None,
        goals: Collection[str] = (),
    ):
        self.counters = dict(counters)
        self.measured = {name: cache(measure) for name, measure in (measured or {}).items()}
        self._costs, self.goals = self.counters | self.measured, tuple(goals)
        constraints = {} if constraints is None else constraints
        if not isinstance(constraints, Mapping):
            raise UserError(
                f'must be like dict(params=(low, high)), got {constraints!r}', 'constraints'
            )
        with within('constraints'):
            ranges = {name: self._range(name, limit) for name, limit in constraints.items()}
        self.ranges = dict(sorted(ranges.items(), key=lambda item: item[0] in self.measured))

    def allow(self, subnet: Subnet) -> bool:
        """Whether ``subnet`` is within all limits."""
        return all(self._is_within(name, subnet) for name in self.ranges)

    def cost(self, name: str, subnet: Subnet) -> float:
        """Return one cost of ``subnet``, limited or not."""
        return self._costs[name](subnet)

    def costs(self, subnet: Subnet) -> dict[str, float]:
        """Return all counted costs of ``subnet``, and measured ones that are limited or a goal."""
        matter = {*self.counters, *self.ranges, *self.goals}
        return {name: cost(subnet) for name, cost in self._costs.items() if name in matter}

    def survey(self, space: SearchSpace) -> tuple[float, str]:
        """Estimate the share of ``space`` within the limits from random subnets.

        Counts 2,000 subnets and measures at most 20 of those within the counted limits; the share
        is the product of both shares.

        Returns:
            The share, and a line of text: how many samples are within the limits, each limit next
            to the costs of the smallest and largest subnet, and the limit that excludes most.
        """
        counted = [name for name in self.ranges if name in self.counters]
        measured = [name for name in self.ranges if name in self.measured]
        rng, both = np.random.default_rng(0), counted and measured
        count = self.MEASURED if measured and not counted else self.SAMPLES
        draws = [space.sample(rng) for _ in range(count)]
        shares, cheap = self._sift(draws, counted)
        trial = cheap[: self.MEASURED] if measured else cheap
        more_shares, passed = self._sift(trial, measured)
        text = (
            f'{len(cheap if both else passed):,} of {count:,} random subnets are within the limits'
        )
        if both:
            text += f' on counts, and {len(passed)} of {len(trial)} of those within the others'
        share = len(cheap) / count * len(passed) / max(1, len(trial))
        offers = '; '.join(self._offer(name, space) for name in self.ranges)
        text, shares = f'{text}: {offers}', shares | more_shares
        if len(shares) > 1 and share < 1:
            worst = min(shares, key=shares.get)
            text += f'; {worst} alone excludes most, {1 - shares[worst]:.1%}'
        return share, text if share else f'{text}; none passes: relax the limits'

    def _is_within(self, name: str, subnet: Subnet) -> bool:
        low, high = self.ranges[name]
        return low <= self._costs[name](subnet) <= high

    def _sift(
        self, subnets: Sequence[Subnet], names: Sequence[str]
    ) -> tuple[dict[str, float], list[Subnet]]:
        """Return the share of ``subnets`` within each limit, and the subnets within all of them."""
        is_within = {name: [self._is_within(name, s) for s in subnets] for name in names}
        passed = [s for s, *each in zip(subnets, *is_within.values(), strict=True) if all(each)]
        return {name: sum(is_within[name]) / len(subnets) for name in names if subnets}, passed

    def _offer(self, name: str, space: SearchSpace) -> str:
        """Describe what a limit asks for and what the space has."""
        unit = f' {UNITS[name]}' if name in UNITS else ''
        low, high = map(_text, self.ranges[name])
        least, most = (_text(self.cost(name, s)) for s in (space.smallest(), space.largest()))
        return f'{name} asked for {low} to {high}{unit}, the space has {least} to {most}{unit}'

    def _range(self, name: str, limit) -> tuple[float, float]:
        if name not in self._costs:
            hint = '; it is measured only if val_cfg.measure is set' if name in UNITS else ''
            raise UserError(f'is unknown; choose from {sorted(self._costs)}{hint}', name)
        if not isinstance(limit, (list, tuple)) or len(limit) != 2:
            raise UserError(f'must be (low, high), got {limit!r}', name)
        low, high = (
            bounded(default if end is None else end, name, inf)
            for end, default in zip(limit, (0.0, inf), strict=True)
        )
        if low > high:
            raise UserError(f'has low {_text(low)} above high {_text(high)}', name)
        return low, high


def _text(value: float) -> str:
    """Format a count in full, a measurement to four digits."""
    whole = abs(value) >= 1000 or float(value).is_integer()
    return f'{value:,.0f}' if whole else f'{value:.4g}'
