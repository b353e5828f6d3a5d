"""A cheap guess at scores, from those known: it selects the children that are worth scoring."""

import warnings
from collections.abc import Mapping, Sequence
from math import isfinite, nan

import numpy as np

from ..checks import bounded, natural
from ..errors import UserError
from ..structures import SearchSpace, Subnet


def encode(subnet: Subnet, space: SearchSpace) -> np.ndarray:
    """``subnet`` as numbers that a regressor can learn from.

    Args:
        subnet: The architecture.
        space: Its search space, whose largest depth L says how many blocks the vector has.

    Returns:
        Depth, width, L heads and L MLP ratios, 0 where there is no block, the logarithms of
        ``width x all heads`` and ``width x all MLP channels``, to which the parameters of
        attention and MLPs are proportional, and the patch size if the space has several:
        (2L + 4,) or (2L + 5,).

    Raises:
        UserError: If the subnet is deeper than the space.
    """
    blocks = max(space.depth)
    if subnet.depth > blocks:
        raise UserError(f'a subnet of depth {subnet.depth} is outside a space of depth {blocks}')
    absent = [0] * (blocks - subnet.depth)
    sums = subnet.embed_dim * np.array([sum(subnet.num_heads), sum(subnet.hidden_dims)])
    shape = (subnet.depth, subnet.embed_dim)
    genes = (*subnet.num_heads, *absent, *subnet.mlp_ratio, *absent)
    patches = () if space.patch_size is None else (subnet.patch_size,)
    return np.array([*shape, *genes, *np.log(sums), *patches], float)


class Surrogate:
    """Predicts which of some subnets score best (lower), and knows how far it can be trusted.

    A Gaussian process (Rasmussen and Williams 2006, chapter 2) over :func:`encode`. It learns
    the ranks of the scores: only they decide, and a few broken subnets cannot stretch them. Of
    random forests, boosted trees and ridge regression none ranked unseen generations better.

    Args:
        space: Where the subnets are from.
        seed: Seed of the draw of subnets that the process is tuned on.
        trust: Rank correlation from which on it is trusted, from 0 to 1.

    Attributes:
        correlation: Spearman's rank correlation of the latest predictions with the scores that
            came in afterwards; NaN before the first comparison, and if either were all equal.

    Raises:
        UserError: If an argument is out of range, or scikit-learn is not installed.
    """

    ENOUGH = 30  # scores seen before it is trusted
    FEW = 10  # scores below which nothing is learned, and no correlation taken
    TUNED = 300  # scores that the process is tuned on: the time grows with their cube

    def __init__(self, space: SearchSpace, seed: int = 0, trust: float = 0.5):
        self.space = space
        self.seed = natural(seed, 'seed')
        self.trust = bounded(trust, 'trust')
        self.correlation = nan
        self._seen: dict[Subnet, float] = {}
        self._model = None
        _check_installed()

    @property
    def is_trusted(self) -> bool:
        """Whether its latest predictions held, and it has seen enough."""
        return len(self._seen) >= self.ENOUGH and self.correlation >= self.trust

    def learn(self, scores: Mapping[Subnet, float]) -> None:
        """Compare the predictions for new subnets with their scores, then learn from all seen.

        Args:
            scores: Lower is better; those that are not finite are left out.
        """
        scores = {subnet: score for subnet, score in scores.items() if isfinite(score)}
        new = [subnet for subnet in scores if subnet not in self._seen]
        if self._model is not None and len(new) >= self.FEW:
            self.correlation = _spearman(self._predict(new), [scores[subnet] for subnet in new])
        self._seen.update(scores)
        if len(self._seen) >= self.FEW:
            self._model = self._fit()

    def select(self, children: Sequence[Subnet], count: int) -> list[Subnet]:
        """The ``count`` children with the best predictions, in the order given.

        Raises:
            UserError: If too little was learned for a prediction.
        """
        if self._model is None:
            raise UserError(f'a surrogate selects after {self.FEW} finite scores; call learn first')
        if len(children) <= count:
            return list(children)
        best = np.argsort(self._predict(children), kind='stable')[:count]
        return [children[i] for i in sorted(best)]

    def _fit(self):
        from scipy.stats import rankdata
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        x, y = self._encode(list(self._seen)), rankdata(list(self._seen.values()))
        scaler = StandardScaler().fit(x)
        kernel = self._tuned_kernel(scaler.transform(x), y)
        process = GaussianProcessRegressor(kernel, optimizer=None, normalize_y=True)
        return make_pipeline(scaler, process.fit(scaler.transform(x), y))

    def _tuned_kernel(self, x: np.ndarray, y: np.ndarray):
        """Length scale and noise of the greatest likelihood for a sample of (n, 2L + 4), (n,)."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import RBF, WhiteKernel

        rng = np.random.default_rng((self.seed, len(x)))
        sample = np.sort(rng.permutation(len(x))[: self.TUNED])
        start = RBF(x.shape[1] ** 0.5) + WhiteKernel(0.1)  # distances grow with the root of width
        process = GaussianProcessRegressor(start, normalize_y=True)
        with warnings.catch_warnings():  # a bound that is reached, of scores that are all noise
            warnings.simplefilter('ignore', ConvergenceWarning)
            return process.fit(x[sample], y[sample]).kernel_

    def _predict(self, subnets: Sequence[Subnet]) -> np.ndarray:
        return self._model.predict(self._encode(subnets))

    def _encode(self, subnets: Sequence[Subnet]) -> np.ndarray:
        return np.stack([encode(subnet, self.space) for subnet in subnets])


def _check_installed() -> None:
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise UserError(
            'the surrogate needs scikit-learn: pip install "tas-lora[search]"'
        ) from error


def _spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Rank correlation from -1 to 1; NaN if either is constant."""
    from scipy.stats import ConstantInputWarning, spearmanr

    with warnings.catch_warnings():
        warnings.simplefilter('ignore', ConstantInputWarning)
        return float(spearmanr(a, b).statistic)
