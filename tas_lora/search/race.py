"""Racing: drop a candidate as soon as it is almost surely not among the best.

All candidates of a generation see the same images, in growing slices. After each slice, their mean
losses over all images are estimated (:class:`~tas_lora.search.stratified.Strata`). A candidate
whose interval lies above the bar is dropped.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ..checks import positive
from ..errors import UserError
from .stratified import Strata


class RaceRules:
    """How candidates race.

    Args:
        first: Images in the first slice. A set that is not larger is evaluated in one go.
        growth: Factor by which each slice increases the number of images seen so far.
        z: Half width of the intervals, in standard errors.
        controls: Maximum number of fully evaluated subnets whose losses predict a candidate's.
        strata: Groups of images, by their mean loss over the known subnets.

    Raises:
        UserError: If an argument is out of range.
    """

    def __init__(
        self,
        first: int = 500,
        growth: float = 1.5,
        z: float = 3.0,
        controls: int = 20,
        strata: int = 20,
    ):
        self.first = positive(first, 'first', int)
        self.growth = positive(growth, 'growth', float, most=100)
        self.z = positive(z, 'z', float, most=100)
        self.controls = positive(controls, 'controls', int, most=200)
        self.strata = positive(strata, 'strata', int, most=100)
        if self.growth < 1.05:
            raise UserError(f'must be at least 1.05, got {growth}', 'growth')
        if self.first < 2 * (self.strata * Strata.LEAST + self.controls):
            raise UserError(
                f'is {first}: too few images for {strata} strata and {controls} controls; raise to '
                f'at least {2 * (self.strata * Strata.LEAST + self.controls)}, or lower these',
                'first',
            )

    def sizes(self, images: int) -> list[int]:
        """Return the number of images seen after each slice; the last is ``images``."""
        sizes, size = [], float(self.first)
        while size < 0.97 * images:  # a last slice of a few images would cost a round
            sizes.append(int(size))
            size = max(size * self.growth, size + 1)
        return [*sizes, images]


class Race:
    """One generation's race for a place among the best, with an ask-and-tell interface.

    Usage::

        while (slice := race.ask()) is not None:
            race.tell({candidate: losses for candidate in slice[0]})  # losses of images slice[1]

    While fewer than ``keep`` subnets compete, the first candidates are evaluated on all images:
    they set the bar and predict the others. If they fail, the next ones take their turn. A
    candidate that fails later does not bring back dropped ones. :meth:`ask` returns the same slice
    until :meth:`tell` gets its losses.

    Args:
        candidates: Number of candidates; they are numbered from 0.
        images: Number of images.
        keep: Number of places.
        known: Losses (k, images) of fully evaluated subnets, best first, used as predictors.
        bar: Mean losses of known subnets that compete for the places.
        rules: Rules of the race.
        rng: Draws the images of a slice.

    Attributes:
        means: Mean loss of each candidate, estimated if it was dropped; NaN if it has none.
        errors: Standard errors of the means; 0 if all images were seen or there is no mean.
        seen: Number of images each candidate was evaluated on.
    """

    def __init__(
        self,
        candidates: int,
        images: int,
        keep: int,
        known: np.ndarray,
        bar: Sequence[float],
        rules: RaceRules,
        rng: np.random.Generator,
    ):
        self.images, self.keep, self.rules, self.rng = images, keep, rules, rng
        self.known = np.asarray(known, np.float64).reshape(-1, images)
        self.bar = list(bar)
        self.losses = np.full((candidates, images), np.nan, np.float32)
        self.means, self.errors = np.full(candidates, np.nan), np.zeros(candidates)
        self.seen = np.zeros(candidates, int)
        self.alive = list(range(candidates))
        self.sizes = rules.sizes(images)
        self.strata: Strata | None = None
        self.pending: tuple[list[int], np.ndarray] | None = None  # asked for, not told yet

    def ask(self) -> tuple[list[int], np.ndarray] | None:
        """Return the next slice's candidates and its images; None when the race is over."""
        if self.pending is None and self.alive:
            self.pending = self._next_slice()
        return self.pending

    def tell(self, losses: Mapping[int, np.ndarray | None]) -> list[int]:
        """Record each candidate's losses on the images of the slice, None if it failed.

        Returns:
            The candidates that this slice decides: failed, dropped, or seen on all images.
        """
        (asked, images), self.pending = self.pending, None
        for candidate in asked:
            if losses[candidate] is not None:
                self.losses[candidate, images] = losses[candidate]
                self.seen[candidate] += len(images)
        failed = [c for c in asked if not np.isfinite(self.losses[c, images]).all()]
        running = [c for c in asked if c not in failed]
        self.means[failed], self.errors[failed] = np.nan, 0.0
        decided = failed + (self._finish(running) if self._is_last() else self._drop(running))
        self.alive = [c for c in self.alive if c not in decided]
        return sorted(decided)

    def whole(self, candidate: int) -> np.ndarray | None:
        """Return the losses of a candidate that was seen on all images, else None."""
        losses = self.losses[candidate]
        return losses if np.isfinite(losses).all() else None

    def _next_slice(self) -> tuple[list[int], np.ndarray]:
        if self.strata is None:
            if pioneers := self._pioneers():
                return pioneers, np.arange(self.images)
            self.strata = Strata(self.known[: self.rules.controls], self.rules.strata, self.rng)
        return list(self.alive), self.strata.draw(self.sizes[0])

    def _pioneers(self) -> list[int]:
        """Choose candidates to evaluate on all images first; without them there is no race."""
        if len(self.sizes) == 1:
            return list(self.alive)
        missing = max(self.keep - len(self.bar), 1 - len(self.known), 0)
        return self.alive[:missing]

    def _is_last(self) -> bool:
        return self.strata is None or len(self.sizes) == 1

    def _finish(self, candidates: list[int]) -> list[int]:
        """Settle candidates that were seen on all images; their means are exact."""
        for candidate in candidates:
            self.means[candidate] = self.losses[candidate].mean(dtype=np.float64)
            self.errors[candidate] = 0.0
        if self.strata is None:
            self.known = np.concatenate([self.known, self.losses[candidates]])
        self.bar += [self.means[c] for c in candidates]
        return candidates

    def _drop(self, candidates: list[int]) -> list[int]:
        """Choose those with an interval above the bar, the ``keep``-th lowest upper end."""
        self.sizes.pop(0)
        if not candidates:
            return []
        means, errors = self.strata.estimate(self.losses[candidates])
        self.means[candidates], self.errors[candidates] = means, errors
        upper = np.sort([*self.bar, *(means + self.rules.z * errors)])
        bar = upper[self.keep - 1] if len(upper) >= self.keep else np.inf
        lost = means - self.rules.z * errors > bar
        return [c for c, is_lost in zip(candidates, lost, strict=True) if is_lost]
