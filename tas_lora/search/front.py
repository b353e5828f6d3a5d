"""Choose among many subnets: the Pareto front, its knees, the best within limits."""

import warnings
from collections.abc import Mapping, Sequence
from math import inf, isnan, nan
from numbers import Real

import numpy as np

from ..checks import one_of
from ..errors import UserError


def pareto_front(points: np.ndarray) -> np.ndarray:
    """Mark the points that are not dominated.

    A point dominates another if it is at most as large in every goal and smaller in one.

    Args:
        points: Goals to minimise, (n, goals). A row with a NaN is never on the front and dominates
            nothing. Of equal rows only the first is on the front.

    Returns:
        Mask of the front, (n,).

    Raises:
        UserError: If ``points`` is not a 2-D array with at least one goal.
    """
    points = _points(points)
    known = np.flatnonzero(~np.isnan(points).any(axis=1))
    ordered = points[known]
    order = np.lexsort(ordered.T[::-1])  # stable; later points dominate no earlier one
    front, size = np.empty((points.shape[1] - 1, len(order))), 0  # the first goal is in order
    mask = np.zeros(len(points), bool)
    for i in order:
        rest = ordered[i, 1:]
        if not (front[:, :size] <= rest[:, None]).all(axis=0).any():
            front[:, size], size = rest, size + 1
            mask[known[i]] = True
    return mask


def knee_points(points: np.ndarray) -> np.ndarray:
    """Find the points of a front where a small gain in one goal costs much in another.

    Uses pymoo's ``HighTradeoffPoints`` (Rachmawati and Srinivasan 2009), with each goal scaled to
    the range 0 to 1 over the front.

    Args:
        points: Goals to minimise, (n, goals): finite, and no row dominates another.

    Returns:
        Indices of the knees, ascending; empty if none stands out or there are fewer than 3 points.

    Raises:
        UserError: If ``points`` is not such a front, or pymoo is not installed.
    """
    points = _points(points)
    if not np.isfinite(points).all() or not pareto_front(points).all():
        raise UserError('knee_points takes a front: finite points[pareto_front(points)]')
    if len(points) < 3:
        return np.empty(0, int)
    low, high = points.min(axis=0), points.max(axis=0)
    scaled = (points - low) / np.where(high > low, high - low, 1)
    if np.linalg.matrix_rank(scaled - scaled.mean(axis=0), tol=1e-9) < 2:
        return np.empty(0, int)  # a straight line has no knee; rounding would give it some
    found = _high_tradeoff(scaled)
    return np.sort(np.array([] if found is None else found, int))


def best_within(
    records: Sequence[Mapping],
    limits: Mapping[str, tuple[float | None, float | None]],
    score: str,
    rule: str,
    estimates: bool = False,
) -> Mapping:
    """Return the best record of a search within limits; the first of equals.

    Args:
        records: Lines of a search history: numbers by name, NaN where unknown. Records with fewer
            ``images`` than the maximum are estimates from a race.
        limits: ``{name: (low, high)}``, inclusive; None leaves a side open.
        score: Name of the number to choose by.
        rule: ``'less'`` or ``'greater'``: which value of it is better.
        estimates: Whether to consider estimates as well.

    Raises:
        UserError: If no record is within the limits, or none has a number of that name. The message
            gives the range of the records.
    """
    one_of(rule, 'rule', ('less', 'greater'))
    if not estimates:
        most = max((record.get('images', 0) for record in records), default=0)
        records = [record for record in records if record.get('images', most) == most]
    ranges = {name: _range(name, limit) for name, limit in limits.items()}
    needed = {score: (-inf, inf)} | ranges  # a comparison with NaN is false
    offers = {name: _offer(records, name) for name in needed}
    fits = [
        record
        for record in records
        if all(low <= _number(record, name) <= high for name, (low, high) in needed.items())
    ]
    if not fits:
        have = '; '.join(
            f'{name} asked for {low:,.6g} to {high:,.6g}, they have {offers[name]}'
            for name, (low, high) in ranges.items()
        )
        raise UserError(f'none of {len(records)} records is within all limits; relax one: {have}')
    return (min if rule == 'less' else max)(fits, key=lambda record: record[score])


def _points(points: np.ndarray) -> np.ndarray:
    points = np.asarray(points, float)
    if points.ndim != 2 or not points.shape[1]:
        raise UserError(f'points must be an array (n, goals), got one of shape {points.shape}')
    return points


def _high_tradeoff(points: np.ndarray) -> np.ndarray | None:
    with warnings.catch_warnings():  # pymoo imports a deprecated SciPy name and mutes all warnings
        warnings.simplefilter('ignore')
        try:
            from pymoo.mcdm.high_tradeoff import HighTradeoffPoints
        except ImportError as error:
            raise UserError('knees need pymoo: pip install "tas-lora[search]"') from error
        return HighTradeoffPoints()(points)


def _number(record: Mapping, name: str) -> float:
    value = record.get(name)
    return float(value) if isinstance(value, Real) else nan


def _range(name: str, limit) -> tuple[float, float]:
    """Return both ends of a limit, infinite where it is open."""
    is_pair = isinstance(limit, (list, tuple)) and len(limit) == 2
    ends = limit if is_pair else (nan, nan)
    low, high = (d if end is None else end for end, d in zip(ends, (-inf, inf), strict=True))
    if not isinstance(low, Real) or not isinstance(high, Real) or not low <= high:
        raise UserError(
            f'the limit of {name} must be (low, high) with low <= high, or None for an open side; '
            f'got {limit!r}'
        )
    return float(low), float(high)


def _offer(records: Sequence[Mapping], name: str) -> str:
    """Describe the range of a number in the records."""
    numbers = [n for n in (_number(record, name) for record in records) if not isnan(n)]
    if not numbers:
        known = sorted({k for r in records for k in r if not isnan(_number(r, k))})
        raise UserError(f'no record has a number {name!r}; choose from {known}')
    return f'{min(numbers):,.6g} to {max(numbers):,.6g}'
