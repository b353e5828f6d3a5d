"""Predict scores from known ones, to select the children that are worth scoring."""

import warnings
from collections.abc import Mapping, Sequence
from math import isfinite, nan

import numpy as np

from ..checks import bounded, natural
from ..errors import UserError
from ..structures import SearchSpace, Subnet


def encode(subnet: Subnet, space: SearchSpace) -> np.ndarray:
    """Encode ``subnet`` as a vector for a regressor.

    Args:
        subnet: The architecture.
        space: Its search space; L is the largest depth.

    Returns:
        (2L + 4,): depth, width, L head counts and L MLP ratios (0 for missing blocks), and the
        logarithms of ``width x all heads`` and ``width x all MLP channels``, to which the
        parameters of attention and MLPs are proportional. With the patch size, if the space
        has it, (2L + 5,).

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
    """Predicts which subnets score best (lowest), and tracks whether it can be trusted.

    A Gaussian process (Rasmussen and Williams 2006, chapter 2) over :func:`encode`. It learns the
    ranks of the scores, so a few broken subnets do not distort it. Random forests, boosted trees
    and ridge regression did not rank unseen generations better.

    Args:
        space: Search space of the subnets.
        seed: Seed for the sample of subnets that the process is tuned on.
        trust: Lowest rank correlation, from 0 to 1, at which it is trusted.

    Attributes:
        correlation: Spearman's rank correlation of the latest predictions with the scores that
            came in afterwards. NaN before the first comparison, or if either side is constant.

    Raises:
        UserError: If an argument is out of range, or scikit-learn is not installed.
    """

    ENOUGH = 30  # scores seen before it is trusted
    FEW = 10  # minimum of scores to learn from or to correlate with
    TUNED = 300  # maximum of scores to tune on: time grows with their cube

    def __init__(self, space: SearchSpace, seed: int = 0, trust: float = 0.5):
        try:
            import sklearn  # noqa: F401
        except ImportError as error:
            raise UserError(
                'the surrogate needs scikit-learn: pip install "tas-lora[search]"'
            ) from error
        self.space = space
        self.seed = natural(seed, 'seed')
        self.trust = bounded(trust, 'trust')
        self.correlation = nan
        self._seen: dict[Subnet, float] = {}
        self._model = None

    @property
    def is_trusted(self) -> bool:
        """Whether it has seen enough scores and its latest predictions were right."""
        return len(self._seen) >= self.ENOUGH and self.correlation >= self.trust

    def learn(self, scores: Mapping[Subnet, float]) -> None:
        """Compare the predictions for new subnets with their scores, then learn from all seen.

        Args:
            scores: Lower is better; scores that are not finite are ignored.
        """
        scores = {subnet: score for subnet, score in scores.items() if isfinite(score)}
        new = [subnet for subnet in scores if subnet not in self._seen]
        if self._model is not None and len(new) >= self.FEW:
            self.correlation = _spearman(self._predict(new), [scores[subnet] for subnet in new])
        self._seen.update(scores)
        if len(self._seen) >= self.FEW:
            self._model = self._fit()

    def select(self, children: Sequence[Subnet], count: int) -> list[Subnet]:
        """Return the ``count`` children with the best predictions, in the given order.

        Raises:
            UserError: If it has not learned enough scores yet.
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
        """Fit length scale and noise by maximum likelihood, on a sample of (n, 2L + 4) and (n,)."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import RBF, WhiteKernel

        rng = np.random.default_rng((self.seed, len(x)))
        sample = np.sort(rng.permutation(len(x))[: self.TUNED])
        start = RBF(x.shape[1] ** 0.5) + WhiteKernel(0.1)  # distances grow with the root of length
        process = GaussianProcessRegressor(start, normalize_y=True)
        with warnings.catch_warnings():  # pure noise drives a parameter to its bound
            warnings.simplefilter('ignore', ConvergenceWarning)
            return process.fit(x[sample], y[sample]).kernel_

    def _predict(self, subnets: Sequence[Subnet]) -> np.ndarray:
        return self._model.predict(self._encode(subnets))

    def _encode(self, subnets: Sequence[Subnet]) -> np.ndarray:
        return np.stack([encode(subnet, self.space) for subnet in subnets])


def _spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Rank correlation, from -1 to 1; NaN if either is constant."""
    from scipy.stats import ConstantInputWarning, spearmanr

    with warnings.catch_warnings():
        warnings.simplefilter('ignore', ConstantInputWarning)
        return float(spearmanr(a, b).statistic)
