"""Estimate a subnet's mean loss over all images from a sample of them.

The losses of known subnets on all images predict most of a subnet's loss. The residuals are small,
so a sample of the images gives a close estimate of the mean. This is the regression estimator of
survey sampling for a stratified sample (Cochran, Sampling Techniques, 1977, 5.5, 5A.9 and 7.9);
its variance comes from the run's own losses.
"""

import numpy as np


class Strata:
    """Groups of images with a similar mean loss, sampled to estimate the mean over all images.

    The spread over known subnets has about the same sum in each group. More images are drawn from
    groups where it is larger (Neyman's allocation).

    Args:
        known: Losses (k, images) of at least one known subnet.
        count: Maximum number of groups.
        rng: Shuffles the images of each group.
    """

    LEAST = 8  # minimum of images drawn from a group, to estimate its variance
    RIDGE = 1e-4  # relative to the mean variance of the controls, against over-fitting
    PRIOR = 10  # weight of the known subnets' spread in a group's variance, in images
    FLOOR = 0.1  # relative to the mean spread: others may differ where known subnets agree
    TINY = 1e-9  # spread where there is none, as with a single known subnet

    def __init__(self, known: np.ndarray, count: int, rng: np.random.Generator):
        self.known, self.typical = known, known.mean(0)
        spread = known.std(0)
        by_loss = np.argsort(self.typical, kind='stable')
        width = min(51, len(by_loss))
        smooth = np.convolve(spread[by_loss], np.ones(width) / width, 'same') + self.TINY
        label = np.minimum((count * np.cumsum(smooth) / smooth.sum()).astype(int), count - 1)
        groups = (by_loss[label == i] for i in range(count))
        self.groups = [rng.permutation(group) for group in groups if len(group)]
        self.sizes = np.array([len(group) for group in self.groups])
        spreads = np.array([np.sqrt((spread[g] ** 2).mean()) for g in self.groups])
        mean = spreads @ self.sizes / self.sizes.sum()
        self.spread = spreads + self.FLOOR * mean + self.TINY
        self.drawn = np.zeros(len(self.groups), int)

    def draw(self, total: int) -> np.ndarray:
        """Draw more images, without repetition, until ``total`` are drawn."""
        before, self.drawn = self.drawn, self._shares(total)
        parts = zip(self.groups, before, self.drawn, strict=True)
        return np.concatenate([group[start:end] for group, start, end in parts])

    def estimate(self, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Estimate the means over all images, and their standard errors.

        Args:
            losses: Losses of the candidates, (A, images); only drawn images are read.
        """
        drawn = np.concatenate([g[:n] for g, n in zip(self.groups, self.drawn, strict=True)])
        weight = np.repeat(self.sizes / self.drawn, self.drawn) / self.sizes.sum()
        rest = losses[:, drawn] - self.typical[drawn]  # (A, n)
        coefficients = self._regression(rest, drawn, weight)  # (A, k)
        rest = rest - coefficients @ self.known[:, drawn]
        means = self.typical.mean() + coefficients @ self.known.mean(1) + rest @ weight
        return means, np.sqrt(self._variance(rest))

    def _regression(self, rest: np.ndarray, drawn: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Regress the candidates' losses, less the known mean, on the known subnets' losses."""
        controls = self.known[:, drawn]
        controls = controls - (controls @ weight)[:, None]
        products = controls * weight @ controls.T
        ridge = self.RIDGE * np.trace(products) / len(products) + 1e-12
        right = controls * weight @ (rest - (rest @ weight)[:, None]).T  # (k, A)
        return np.linalg.solve(products + ridge * np.eye(len(products)), right).T

    def _variance(self, rest: np.ndarray) -> np.ndarray:
        """Variance of the estimated means, from residuals (A, n) in the order of the groups."""
        total, fitted = rest.shape[1], len(self.known)
        inflation = total / max(total - fitted, 1)
        share, variance, start = self.sizes / self.sizes.sum(), np.zeros(len(rest)), 0
        scale = rest.var(axis=1) / (self.spread**2 @ share)
        for size, n, w, spread in zip(self.sizes, self.drawn, share, self.spread, strict=True):
            part, start = rest[:, start : start + n], start + n
            own = part.var(axis=1) * n * inflation  # a sum of squares
            within = (own + self.PRIOR * spread**2 * scale) / (n - 1 + self.PRIOR)
            variance += w**2 * (1 - n / size) * within / n
        return variance

    def _shares(self, total: int) -> np.ndarray:
        """Split ``total`` images over the groups, in proportion to size times spread.

        Each group gets at least ``LEAST`` and what is drawn already, and at most its size.
        """
        want = self.sizes * self.spread
        least = np.maximum(np.minimum(self.sizes, self.LEAST), self.drawn)
        low, high = 0.0, (self.sizes / want).max()  # bisection for the images per unit of want
        for _ in range(60):
            middle = (low + high) / 2
            if np.clip(middle * want, least, self.sizes).sum() < total:
                low = middle
            else:
                high = middle
        ends = np.cumsum(np.clip(high * want, least, self.sizes))
        shares = np.diff(np.floor(ends + 0.5), prepend=0).astype(int)  # their sum is the total
        return np.clip(shares, least, self.sizes)
