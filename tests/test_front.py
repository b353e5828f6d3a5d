"""Fronts, knees and the best within limits, against their definitions."""

import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tiny import repeatable

from tas_lora import UserError
from tas_lora.search.front import best_within, knee_points, pareto_front

NAN, INF = float('nan'), float('inf')

# Few values, so that there are ties, equal rows and NaNs.
some_points = st.tuples(st.integers(0, 12), st.integers(1, 4)).flatmap(
    lambda shape: arrays(float, shape, elements=st.sampled_from([0.0, 1.0, 2.0, 3.0, -INF, NAN]))
)


def on_front(points: list[list[float]], i: int) -> bool:
    """The definition, in plain Python."""

    def beats(a, b):
        return all(x <= y for x, y in zip(a, b, strict=True)) and a != b

    known = not any(x != x for x in points[i])
    return (
        known
        and not any(beats(other, points[i]) for other in points)
        and (points.index(points[i]) == i)
    )


@given(some_points)
@repeatable
def test_front_is_what_its_definition_says(points):
    rows = points.tolist()
    assert pareto_front(points).tolist() == [on_front(rows, i) for i in range(len(rows))]


@given(arrays(float, (20, 3), elements=st.floats(-1e6, 1e6)), st.randoms())
@repeatable
def test_front_does_not_depend_on_the_order(points, random):
    order = list(range(20))
    random.shuffle(order)
    found, shuffled = (set(map(tuple, p[pareto_front(p)])) for p in (points, points[order]))
    assert found == shuffled


@pytest.mark.parametrize('goals', [2, 3])
def test_twenty_thousand_points_all_on_the_front(goals):
    """Within a few MB; a matrix of all pairs has 400."""
    rising = np.random.default_rng(0).permutation(20_000) / 20_000
    rest = np.random.default_rng(1).random((20_000, goals - 2))
    points = np.column_stack([rising, -rising, rest])
    tracemalloc.start()
    try:
        assert pareto_front(points).all()
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize('shape', [(3,), (3, 0), (2, 2, 2)])
def test_points_are_rows_of_goals(shape):
    with pytest.raises(UserError, match=r'must be an array \(n, goals\)'):
        pareto_front(np.zeros(shape))


def bent(at: float = 0.3, count: int = 21) -> np.ndarray:
    """Two straight lines from (0, 1) to (1, 0), which meet at (at, 0.1)."""
    x = np.linspace(0, 1, count)
    return np.stack([x, np.interp(x, [0, at, 1], [1, 0.1, 0])], axis=1)


@pytest.mark.parametrize('place', [4, 6, 10])
@pytest.mark.parametrize('scale', [(1, 1), (1e7, 0.01)])
def test_the_bend_of_a_line_is_its_knee(place, scale):
    points = bent(at=place / 20) * scale + 3
    assert knee_points(points).tolist() == [place]
    order = np.random.default_rng(0).permutation(21)
    assert order[knee_points(points[order])].tolist() == [place]


def test_a_third_goal_that_never_changes_leaves_the_knee():
    points = np.column_stack([bent(), np.full(21, 7.0)])
    assert knee_points(points).tolist() == [6]


def test_a_straight_line_has_no_knee():
    x = np.linspace(0, 1, 21)
    assert knee_points(np.stack([x, 1 - x], axis=1)).tolist() == []


@pytest.mark.parametrize('count', [0, 1, 2])
def test_a_short_front_has_no_knee(count):
    assert knee_points(bent()[:count]).tolist() == []


@given(arrays(int, st.tuples(st.integers(0, 15), st.just(3)), elements=st.integers(0, 9)))
@repeatable
def test_knees_are_points_of_the_front(points):
    points = points[pareto_front(points)]
    knees = knee_points(points)
    assert len(set(knees.tolist())) == len(knees) < max(len(points), 1)
    assert all(0 <= knee < len(points) for knee in knees)


@pytest.mark.parametrize('points', [[[0, 0], [1, 1]], [[0, 1], [0, 1]], [[NAN, 1]], [[-INF, 1]]])
def test_knees_are_refused_of_what_is_no_front(points):
    with pytest.raises(UserError, match='knee_points takes a front'):
        knee_points(np.array(points))


def test_pymoo_that_is_missing_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, 'pymoo.mcdm.high_tradeoff', None)
    with pytest.raises(UserError, match=r'pip install "tas-lora\[search\]"'):
        knee_points(bent())


RECORDS = [
    dict(subnet={}, precision='float32', params=10, flops=5.0, loss=0.9, top1=70.0, images=100),
    dict(subnet={}, precision='float32', params=20, flops=8.0, loss=0.5, top1=75.0, images=100),
    dict(subnet={}, precision='float32', params=30, flops=9.0, loss=0.4, top1=NAN, images=100),
    dict(subnet={}, precision='float32', params=20, flops=8.0, loss=0.5, top1=75.0, images=100),
    dict(subnet={}, precision='float32', params=12, flops=6.0, loss=0.1, top1=99.0, images=40),
    dict(subnet={}, precision='float32', params=40, flops=NAN, loss=0.3, top1=80.0, images=100),
]


@pytest.mark.parametrize(
    ('limits', 'score', 'rule', 'expected'),
    [
        ({}, 'loss', 'less', 5),
        ({}, 'loss', 'greater', 0),
        ({}, 'top1', 'greater', 5),
        (dict(params=(None, 30)), 'loss', 'less', 2),
        (dict(params=(None, 30)), 'top1', 'greater', 1),  # the first of two; NaN does not win
        (dict(params=(None, 29)), 'loss', 'less', 1),  # line 4 has too few images
        (dict(params=(10, 10)), 'loss', 'less', 0),
        (dict(flops=(None, None)), 'loss', 'less', 2),  # an unknown cost is not within limits
        (dict(flops=(0, 8.5), loss=(0.6, None)), 'top1', 'greater', 0),
    ],
)
def test_the_best_within_limits(limits, score, rule, expected):
    assert best_within(RECORDS, limits, score, rule) is RECORDS[expected]


numbers = st.sampled_from([0, 1, 2, 3, NAN])
some_records = st.lists(
    st.fixed_dictionaries(dict(params=numbers, loss=numbers), optional=dict(images=st.just(8))),
    min_size=1,
    max_size=6,
)


@given(some_records, st.integers(0, 3), st.integers(0, 3))
@repeatable
def test_the_best_of_random_records(records, low, high):
    fits = [r['loss'] for r in records if low <= r['params'] <= high and r['loss'] == r['loss']]
    if fits:
        best = best_within(records, dict(params=(low, high)), 'loss', 'less')
        assert best['loss'] == min(fits)
        assert low <= best['params'] <= high
    else:
        with pytest.raises(UserError):
            best_within(records, dict(params=(low, high)), 'loss', 'less')


@pytest.mark.parametrize(
    ('limits', 'score', 'rule', 'message'),
    [
        (dict(params=(50, None)), 'loss', 'less', 'params asked for 50 to inf, they have 10 to 40'),
        (dict(params=(11, 19)), 'loss', 'less', 'none of 5 records is within all limits'),
        (dict(parms=(1, 2)), 'loss', 'less', "no record has a number 'parms'; choose from .*flops"),
        ({}, 'precision', 'less', "no record has a number 'precision'"),
        ({}, 'loss', 'best', "rule must be 'less' or 'greater', got 'best'"),
        (dict(params=(2, 1)), 'loss', 'less', r'the limit of params must be \(low, high\)'),
        (dict(params=5), 'loss', 'less', 'the limit of params must be'),
        (dict(params=(NAN, 1)), 'loss', 'less', 'the limit of params must be'),
        (dict(params=('1', 2)), 'loss', 'less', 'the limit of params must be'),
    ],
)
def test_choices_that_cannot_be_met(limits, score, rule, message):
    with pytest.raises(UserError, match=message):
        best_within(RECORDS, limits, score, rule)


def test_no_records_at_all():
    with pytest.raises(UserError, match="no record has a number 'loss'"):
        best_within([], {}, 'loss', 'less')
