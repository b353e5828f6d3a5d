"""The surrogate: what it can learn, when it is trusted, what it selects."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import SPACE, every, repeatable, spaces

from tas_lora import SearchSpace, Subnet, UserError, count_params
from tas_lora.search.surrogate import Surrogate, encode

LARGE = SearchSpace((16, 24, 32), (4, 5, 6), (1, 2, 3), (1.0, 2.0, 3.0))
NAN, INF = float('nan'), float('inf')


def draw(count: int, seed: int = 0, space: SearchSpace = LARGE) -> list[Subnet]:
    """Different random subnets."""
    rng, drawn = np.random.default_rng(seed), {}
    while len(drawn) < count:
        drawn[space.sample(rng)] = None
    return list(drawn)


def smooth(subnet: Subnet) -> float:
    """Falls with size, and more with early MLPs."""
    early = sum(ratio / (i + 1) for i, ratio in enumerate(subnet.mlp_ratio))
    return -np.log(count_params(subnet)) - 0.1 * early


def scored(subnets, score=smooth) -> dict[Subnet, float]:
    return {subnet: score(subnet) for subnet in subnets}


def random_score(seed: int = 0):
    rng = np.random.default_rng(seed)
    return lambda subnet: float(rng.normal())


def test_encoding_of_a_subnet_by_hand():
    space = SearchSpace((16, 24), (2, 3), (1, 2), (1.0, 2.5))
    code = encode(Subnet(24, [1, 2], [1.0, 2.5]), space)
    sums = np.log([24 * (1 + 2), 24 * (24 + 60)])
    np.testing.assert_allclose(code, [2, 24, 1, 2, 0, 1, 2.5, 0, *sums])


@given(spaces(depths=(1, 2, 3)))
@repeatable
def test_encodings_differ_and_have_one_length(space):
    codes = [tuple(encode(subnet, space)) for subnet in every(space)[:500]]
    assert len(set(codes)) == len(codes)
    assert {len(code) for code in codes} == {2 * max(space.depth) + 4}


def test_a_subnet_deeper_than_the_space_is_refused():
    with pytest.raises(UserError, match='depth 4 is outside a space of depth 3'):
        encode(LARGE.smallest(), SPACE)


def test_a_smooth_score_is_trusted_from_enough_on():
    surrogate, subnets = Surrogate(LARGE), draw(36)
    trusted, correlations = [], []
    for i in range(0, 36, 12):
        surrogate.learn(scored(subnets[i : i + 12]))
        trusted.append(surrogate.is_trusted)
        correlations.append(surrogate.correlation)
    assert trusted == [False, False, True]
    assert correlations[1] > 0.5  # not trusted for want of scores alone
    assert surrogate.correlation > 0.8


@pytest.mark.parametrize('seed', range(3))
def test_a_random_score_is_not_trusted(seed):
    surrogate, score = Surrogate(LARGE), random_score(seed)
    subnets = draw(200, seed)
    for i in range(0, 200, 50):
        surrogate.learn(scored(subnets[i : i + 50], score))
        assert not surrogate.is_trusted
    assert not abs(surrogate.correlation) >= 0.4  # NaN if all predictions are equal


def test_a_score_that_stops_being_predictable_loses_the_trust():
    surrogate, subnets = Surrogate(LARGE), draw(150)
    surrogate.learn(scored(subnets[:50]))
    surrogate.learn(scored(subnets[50:100]))
    assert surrogate.is_trusted
    surrogate.learn(scored(subnets[100:], lambda subnet: -smooth(subnet)))
    assert surrogate.correlation < 0
    assert not surrogate.is_trusted


def test_predictions_are_compared_before_their_scores_are_learned():
    surrogate = Surrogate(LARGE)
    known, new = draw(40), draw(80)[40:]
    surrogate.learn(scored(known))
    assert np.isnan(surrogate.correlation)
    ahead = Surrogate(LARGE)
    ahead.learn(scored(known))
    predicted = [ahead.select(new, count) for count in range(1, 41)]
    rank = {subnet: min(i for i, best in enumerate(predicted) if subnet in best) for subnet in new}
    place = {subnet: i for i, subnet in enumerate(sorted(new, key=smooth))}
    squares = sum((rank[subnet] - place[subnet]) ** 2 for subnet in new)
    surrogate.learn(scored(known[:20] + new))  # those it has learned are not compared
    assert surrogate.correlation == pytest.approx(1 - 6 * squares / (40 * (40**2 - 1)))


@pytest.mark.parametrize('learned', [30, 100])
def test_selection_is_far_better_than_chance(learned):
    surrogate, subnets = Surrogate(LARGE), draw(300)
    surrogate.learn(scored(subnets[:learned]))
    children = subnets[100:]
    chosen = surrogate.select(children, 50)
    mean, selected, best = (
        np.mean([smooth(subnet) for subnet in group])
        for group in (children, chosen, sorted(children, key=smooth)[:50])
    )
    assert mean - selected > 0.8 * (mean - best)


@given(st.integers(0, 30), st.integers(0, 30))
@repeatable
def test_selection_keeps_the_order(count, wanted):
    surrogate, children = Surrogate(SPACE), draw(30, space=SPACE)[:count]
    surrogate.learn(scored(every(SPACE)[:10]))
    chosen = surrogate.select(children, wanted)
    assert len(chosen) == min(count, wanted)
    assert chosen == [child for child in children if child in chosen]


def test_scores_that_are_not_finite_are_left_out():
    subnets = draw(60)
    clean, dirty = Surrogate(LARGE), Surrogate(LARGE)
    clean.learn(scored(subnets[:40]))
    dirty.learn(scored(subnets[:40]) | scored(subnets[40:50], lambda _: NAN))
    dirty.learn(scored(subnets[50:], lambda _: INF))
    assert clean.select(subnets, 10) == dirty.select(subnets, 10)
    assert np.isnan(dirty.correlation)


def test_equal_scores_are_no_evidence():
    surrogate, subnets = Surrogate(LARGE), draw(80)
    surrogate.learn(scored(subnets[:40], lambda _: 1.0))
    surrogate.learn(scored(subnets[40:], lambda _: 1.0))
    assert np.isnan(surrogate.correlation)
    assert not surrogate.is_trusted


def test_one_broken_subnet_does_not_hide_the_others():
    subnets = draw(120)
    surrogate = Surrogate(LARGE)
    surrogate.learn(scored(subnets[:60]) | {subnets[0]: 1e6})
    surrogate.learn(scored(subnets[60:]))
    assert surrogate.correlation > 0.8


@pytest.mark.parametrize('seed', [0, 5])
def test_same_seed_same_predictions(seed):
    subnets = draw(450)

    def history(disturb: bool):
        surrogate = Surrogate(LARGE, seed=seed)
        for i in range(0, 400, 100):
            np.random.seed(i if disturb else 1)
            surrogate.learn(scored(subnets[i : i + 100]))
            yield surrogate.correlation, surrogate.select(subnets[i + 50 :], 10)

    assert list(history(False)) == list(history(True))


def test_selecting_before_learning_is_refused():
    surrogate = Surrogate(LARGE)
    surrogate.learn(scored(draw(9)))
    with pytest.raises(UserError, match='selects after 10 finite scores'):
        surrogate.select(draw(10), 2)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(trust=1.5), '^trust must be a number from 0 to 1'),
        (dict(seed=-1), '^seed must be an integer from 0 up'),
    ],
)
def test_arguments_that_make_no_sense(change, message):
    with pytest.raises(UserError, match=message):
        Surrogate(SPACE, **change)


def test_scikit_learn_that_is_missing_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, 'sklearn', None)
    with pytest.raises(UserError, match=r'pip install "tas-lora\[search\]"'):
        Surrogate(SPACE)
