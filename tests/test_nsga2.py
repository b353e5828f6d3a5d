"""NSGA-II: how much of a known front it finds, what it never does."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import SPACE, autoformer, every, repeatable, spaces

from tas_lora import SearchSpace, Subnet, UserError, count_params
from tas_lora.search.evolution import Evolution
from tas_lora.search.nsga2 import NSGA2

# 2430 subnets, few enough to know the front.
MEDIUM = SearchSpace((16, 24, 32), (2, 3), (1, 2, 4), (1.0, 2.0, 3.0))
# About 2 million.
LARGE = SearchSpace((16, 24, 32), (4, 5, 6), (1, 2, 3), (1.0, 2.0, 3.0))
COSTS = dict(params=count_params)
SMALL = dict(population=10, generations=4)
NAN, INF = float('nan'), float('inf')

few = settings(repeatable, max_examples=15)  # a small space is drawn from until it is exhausted


def anything(subnet):
    return True


def score(subnet: Subnet) -> float:
    """Larger is better, the first MLPs and the last heads most of all."""
    heads = sum((i + 1) * heads for i, heads in enumerate(subnet.num_heads))
    ratios = sum((4 - i) * ratio for i, ratio in enumerate(subnet.mlp_ratio))
    return -subnet.embed_dim / 4 - heads - ratios


def run(search, score=score) -> list[list[Subnet]]:
    """The generations of a whole search."""
    generations = []
    while subnets := search.ask():
        generations.append(subnets)
        search.tell({subnet: score(subnet) for subnet in subnets})
    return generations


def flat(generations):
    return [subnet for generation in generations for subnet in generation]


def goals(subnets) -> set[tuple[float, float]]:
    return {(score(subnet), count_params(subnet)) for subnet in subnets}


def front(subnets) -> set[tuple[float, float]]:
    """The definition: goals that no other goals are as good as in both."""
    all_goals = goals(subnets)
    return {
        (a, b)
        for a, b in all_goals
        if not any(c <= a and d <= b for c, d in all_goals if (c, d) != (a, b))
    }


@pytest.mark.parametrize('seed', range(4))
def test_most_of_a_known_front_is_found(seed):
    true = front(every(MEDIUM))
    assert len(true) == 24
    search = NSGA2(MEDIUM, anything, COSTS, population=30, generations=20, seed=seed)
    run(search)
    assert len(goals(search.scores) & true) >= 20


def test_more_of_the_front_is_found_than_by_evolution_or_random_draws():
    true = front(every(MEDIUM))
    sizes = dict(population=30, generations=20)
    found = []
    for search in (
        NSGA2(MEDIUM, anything, COSTS, **sizes),
        Evolution(MEDIUM, anything, mutations=15, crossovers=15, **sizes),
        Evolution(MEDIUM, anything, mutations=0, crossovers=0, **sizes),
    ):
        run(search)
        found.append(len(goals(search.scores) & true))
    assert found[0] > found[1] > found[2]


def test_the_front_below_a_limit_is_found():
    limit = sorted(map(count_params, every(MEDIUM)))[400]
    within = [subnet for subnet in every(MEDIUM) if count_params(subnet) <= limit]
    true = front(within)
    search = NSGA2(
        MEDIUM, lambda subnet: count_params(subnet) <= limit, COSTS, population=15, generations=10
    )
    run(search)
    assert len(true) > 5
    assert len(goals(search.scores) & true) >= 0.8 * len(true)


def test_every_cost_is_an_objective():
    shallow = dict(depth=lambda subnet: subnet.depth, width=lambda subnet: subnet.embed_dim)
    search = NSGA2(LARGE, anything, shallow, population=20, generations=10)
    last = run(search, lambda subnet: 0)[-1]
    first = NSGA2(LARGE, anything, shallow, population=20, generations=10).ask()
    for cost in shallow.values():
        assert sum(map(cost, last)) < sum(map(cost, first))


@pytest.mark.full
@given(spaces(depths=(1, 2)), st.floats(0, 1), st.floats(0, 1))
@few
def test_limits_always_hold(space, low, high):
    counts = sorted(map(count_params, every(space)))
    lower, upper = (counts[int(share * (len(counts) - 1))] for share in sorted((low, high)))

    def is_feasible(subnet):
        return lower <= count_params(subnet) <= upper

    asked = flat(run(NSGA2(space, is_feasible, COSTS, **SMALL | dict(generations=2))))
    assert asked
    assert all(subnet in space and is_feasible(subnet) for subnet in asked)


@given(spaces(), st.integers(0, 1000))
@few
def test_no_subnet_is_asked_for_twice(space, seed):
    asked = flat(run(NSGA2(space, anything, COSTS, **SMALL, seed=seed)))
    assert len(asked) == len(set(asked))


def test_every_generation_has_the_population_and_there_are_no_more():
    generations = run(NSGA2(LARGE, anything, COSTS, **SMALL))
    assert [len(generation) for generation in generations] == [10] * 4


def test_same_seed_same_sequence():
    runs = [run(NSGA2(LARGE, anything, COSTS, **SMALL, seed=seed)) for seed in (3, 3, 4)]
    assert runs[0] == runs[1]
    assert all(a != b for a, b in zip(runs[0], runs[2], strict=True))


def test_global_random_state_is_neither_used_nor_changed():
    calm = run(NSGA2(LARGE, anything, COSTS, **SMALL))
    search, disturbed = NSGA2(LARGE, anything, COSTS, **SMALL), []
    np.random.seed(7)
    expected = np.random.RandomState(7).random_sample(len(calm))
    while subnets := search.ask():
        disturbed.append(subnets)
        assert np.random.random_sample() == expected[search.generation]
        search.tell({subnet: score(subnet) for subnet in subnets})
    assert disturbed == calm


def test_asking_again_gives_the_same_generation():
    search = NSGA2(LARGE, anything, COSTS, **SMALL)
    for _ in range(3):
        subnets = search.ask()
        assert search.ask() == subnets
        search.tell({subnet: score(subnet) for subnet in subnets})


def test_exhausted_space_ends_the_search_after_every_subnet():
    generations = run(NSGA2(SPACE, anything, COSTS, generations=1000))
    assert len(generations) < 10
    assert sorted(flat(generations), key=repr) == sorted(every(SPACE), key=repr)


def test_limits_that_nothing_meets_end_the_search_at_once():
    asked = []  # about; None is appended, so that nothing is allowed
    assert run(NSGA2(LARGE, asked.append, COSTS)) == []
    assert 0 < len(asked) <= 2 * NSGA2.PATIENCE


def test_limits_that_only_the_smallest_meets_are_met():
    space, _ = autoformer('t')
    limit = count_params(space.smallest())
    search = NSGA2(space, lambda subnet: count_params(subnet) <= limit, COSTS, generations=2)
    assert run(search) == [[space.smallest()]]


def test_narrow_limits_are_filled_from_what_meets_them():
    space, _ = autoformer('t')
    first = NSGA2(space, lambda subnet: count_params(subnet) <= 5.5e6, COSTS).ask()
    assert len(set(first)) == 50
    assert max(map(count_params, first)) <= 5.5e6


@pytest.mark.parametrize('bad', [NAN, INF])
def test_scores_that_are_not_finite_rank_last_and_have_no_children(bad):
    search = NSGA2(LARGE, anything, COSTS, population=20, generations=4, shape_prob=0.0)
    generations = run(search, lambda subnet: score(subnet) if subnet.embed_dim == 24 else bad)
    widths = [{subnet.embed_dim for subnet in generation} for generation in generations]
    assert widths == [{16, 24, 32}, {24}, {24}, {24}]
    best = search.best(80)
    assert [subnet.embed_dim for subnet in best[60:]].count(24) < 20
    assert {subnet.embed_dim for subnet in best[:60]} == {24}


def test_a_search_without_any_finite_score_goes_on_at_random():
    generations = run(NSGA2(LARGE, anything, COSTS, **SMALL), lambda subnet: NAN)
    assert len(set(flat(generations))) == 40


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(population=0), '^population must be a positive integer, got 0'),
        (dict(generations=1.5), '^generations must be a positive integer'),
        (dict(gene_prob=2), '^gene_prob must be a number from 0 to 1'),
        (dict(costs={}), r'nsga2.costs must be like dict\(params=count_params\)'),
        (dict(costs=dict(params=3)), 'nsga2.costs must be like'),
        (dict(costs=count_params), 'nsga2.costs must be like'),
    ],
)
def test_arguments_that_make_no_sense(change, message):
    with pytest.raises(UserError, match=message):
        NSGA2(**dict(space=SPACE, is_feasible=anything, costs=COSTS) | change)


def test_pymoo_that_is_missing_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, 'pymoo.algorithms.moo', None)
    with pytest.raises(UserError, match=r'pip install "tas-lora\[search\]"'):
        NSGA2(SPACE, anything, COSTS)
