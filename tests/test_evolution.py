"""The evolution: what it finds, what it never does."""

from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import SPACE, autoformer, every, repeatable, spaces

from tas_lora import SearchSpace, Subnet, UserError, count_params
from tas_lora.search import Evolution
from tas_lora.search.surrogate import Surrogate

# About 2 million subnets; one of them scores 0.
LARGE = SearchSpace((16, 24, 32), (4, 5, 6), (1, 2, 3), (1.0, 2.0, 3.0))
OPTIMUM = Subnet(24, [3, 1, 2, 3, 1], [2.0, 3.0, 1.0, 1.0, 2.0])
SMALL = dict(population=12, generations=4, parents=4, mutations=5, crossovers=5)
NAN, INF = float('nan'), float('inf')

few = settings(repeatable, max_examples=15)  # a small space is drawn from until it is exhausted


def anything(subnet):
    return True


def distance(subnet: Subnet) -> int:
    """Genes in which a subnet differs from the optimum."""
    genes = zip(
        subnet.num_heads + subnet.mlp_ratio, OPTIMUM.num_heads + OPTIMUM.mlp_ratio, strict=False
    )
    shape = 3 * (subnet.depth != OPTIMUM.depth) + (subnet.embed_dim != OPTIMUM.embed_dim)
    return shape + sum(a != b for a, b in genes)


def run(evolution: Evolution, score=count_params) -> list[list[Subnet]]:
    """The generations of a whole search."""
    generations = []
    while subnets := evolution.ask():
        generations.append(subnets)
        evolution.tell({subnet: score(subnet) for subnet in subnets})
    return generations


def run_ahead(evolution: Evolution, score=count_params) -> list[list[Subnet]]:
    """The generations of a search that asks for as many ahead as it may."""
    generations, ahead = [], []
    while True:
        while len(ahead) <= evolution.overlap and (subnets := evolution.ask(ahead)):
            ahead.append(subnets)
        if not ahead:
            return generations
        generations.append(ahead.pop(0))
        evolution.tell({subnet: score(subnet) for subnet in generations[-1]})


def flat(generations):
    return [subnet for generation in generations for subnet in generation]


@pytest.mark.parametrize('seed', range(3))
def test_optimum_of_a_separable_score_is_found(seed):
    evolution = Evolution(LARGE, anything, seed=seed)
    run(evolution, distance)
    assert evolution.best(1) == [OPTIMUM]


def test_selection_beats_random_draws():
    evolved, random = (
        Evolution(LARGE, anything, generations=10, mutations=n, crossovers=n) for n in (25, 0)
    )
    for evolution in (evolved, random):
        run(evolution, distance)
    assert distance(evolved.best(1)[0]) < distance(random.best(1)[0])


@given(spaces(depths=(1, 2)), st.floats(0, 1), st.floats(0, 1))
@few
def test_limits_always_hold(space, low, high):
    counts = sorted(map(count_params, every(space)))
    lower, upper = (counts[int(share * (len(counts) - 1))] for share in sorted((low, high)))

    def is_feasible(subnet):
        return lower <= count_params(subnet) <= upper

    asked = flat(run(Evolution(space, is_feasible, **SMALL | dict(generations=2))))
    assert asked
    assert all(subnet in space and is_feasible(subnet) for subnet in asked)


def test_limits_that_nothing_meets_end_the_search_at_once():
    asked = []  # about; None is appended, so that nothing is allowed
    assert run(Evolution(LARGE, asked.append)) == []
    assert 0 < len(asked) <= 2 * Evolution.PATIENCE


@given(spaces(), st.integers(0, 1000))
@few
def test_no_subnet_is_asked_for_twice(space, seed):
    asked = flat(run(Evolution(space, anything, **SMALL | dict(generations=2), seed=seed)))
    assert len(asked) == len(set(asked))


@pytest.mark.full
@given(spaces(), st.integers(0, 3), st.integers(0, 1000))
@few
def test_generations_that_overlap_share_no_subnet(space, overlap, seed):
    sizes = SMALL | dict(seed=seed)
    asked = flat(run_ahead(Evolution(space, anything, **sizes, overlap=overlap)))
    assert len(asked) == len(set(asked))
    assert len(asked) == len(flat(run(Evolution(space, anything, **sizes))))


def test_a_generation_is_bred_from_those_told_alone():
    evolution = Evolution(LARGE, anything, **SMALL, overlap=1)
    ahead = [evolution.ask()]
    ahead.append(evolution.ask(ahead))
    evolution.tell(dict.fromkeys(ahead[0], 1.0) | {ahead[0][5]: 0.0})
    third = evolution.ask(ahead[1:])
    again = Evolution(LARGE, anything, **SMALL, overlap=1)
    again.scores, again.generation = dict(evolution.scores), 1
    assert again.ask(ahead[1:]) == third
    assert again.ask([]) != third  # the second generation, with draws of its own


@pytest.mark.full
def test_evolution_that_overlaps_finds_nearly_as_much():
    def left(overlap: int, **kwargs) -> float:
        searches = [
            Evolution(LARGE, anything, seed=seed, overlap=overlap, generations=12, **kwargs)
            for seed in range(6)
        ]
        for search in searches:
            run_ahead(search, distance)
        return np.mean([distance(search.best(1)[0]) for search in searches])

    assert left(1) < 1 < left(0, mutations=0, crossovers=0)


@pytest.mark.parametrize('overlap', [-1, 4, 0.5, True, '1'])
def test_an_overlap_leaves_a_generation_to_breed(overlap):
    with pytest.raises(UserError, match='overlap must be an integer from 0 to 3'):
        Evolution(LARGE, anything, **SMALL, overlap=overlap)


def test_same_seed_same_sequence():
    runs = [run(Evolution(LARGE, anything, **SMALL, seed=seed)) for seed in (3, 3, 4)]
    assert runs[0] == runs[1]
    assert all(a != b for a, b in zip(runs[0], runs[2], strict=True))


def test_asking_again_gives_the_same_generation():
    evolution = Evolution(LARGE, anything, **SMALL)
    assert evolution.ask() == evolution.ask()


def test_each_generation_has_draws_of_its_own():
    first, second = (Evolution(LARGE, anything, **SMALL) for _ in range(2))
    second.generation = 1
    assert first.ask() != second.ask()


def test_scores_and_generation_are_the_whole_state():
    first, second = (Evolution(LARGE, anything, **SMALL) for _ in range(2))
    for _ in range(2):
        first.tell({subnet: distance(subnet) for subnet in first.ask()})
    second.scores, second.generation = dict(first.scores), 2
    assert run(first, distance) == run(second, distance)


def test_exhausted_space_ends_the_search_after_every_subnet():
    generations = run(Evolution(SPACE, anything, generations=1000))
    assert len(generations) < 10
    assert sorted(flat(generations), key=repr) == sorted(every(SPACE), key=repr)


def test_every_generation_has_the_population_and_there_are_no_more():
    generations = run(Evolution(LARGE, anything, **SMALL))
    assert [len(generation) for generation in generations] == [12] * 4


@pytest.mark.parametrize('bad', [NAN, INF])
def test_scores_that_are_not_finite_rank_last(bad):
    evolution = Evolution(LARGE, anything, **SMALL)
    subnets = evolution.ask()
    scores = [bad, 2.0, bad, 1.0, bad, 3.0]
    evolution.tell(dict(zip(subnets, scores, strict=False)))
    assert evolution.best(3) == [subnets[3], subnets[1], subnets[5]]
    assert set(evolution.best(6)[3:]) == {subnets[0], subnets[2], subnets[4]}


def test_equal_scores_rank_by_age():
    evolution = Evolution(LARGE, anything, **SMALL)
    generations = run(evolution, lambda subnet: 0)
    assert evolution.best(48) == flat(generations)


def test_last_generation_is_ranked():
    evolution = Evolution(LARGE, anything, **SMALL)
    age = iter(range(1000))
    generations = run(evolution, lambda subnet: -next(age))  # the later the better
    assert evolution.best(12) == generations[-1][::-1]


def parents_used(monkeypatch) -> list[Subnet]:
    """A list that fills with the parents of all mutants."""
    used, mutate = [], SearchSpace.mutate

    def spy(space, subnet, *args):
        used.append(subnet)
        return mutate(space, subnet, *args)

    monkeypatch.setattr(SearchSpace, 'mutate', spy)
    return used


def test_parents_are_the_best_of_all_generations(monkeypatch):
    used = parents_used(monkeypatch)
    evolution = Evolution(LARGE, anything, **SMALL)
    age = iter(range(1000))
    first, *_ = run(evolution, lambda subnet: next(age))  # the earlier the better
    assert set(used) == set(first[:4])


def test_subnets_without_a_finite_score_are_no_parents(monkeypatch):
    used = parents_used(monkeypatch)
    run(
        Evolution(LARGE, anything, **SMALL),
        lambda subnet: distance(subnet) if subnet.embed_dim == 24 else NAN,
    )
    assert used
    assert {parent.embed_dim for parent in used} == {24}


def test_children_fill_the_generation_before_random_draws():
    evolution = Evolution(LARGE, anything, **SMALL | dict(shape_prob=0.0))
    first = evolution.ask()
    evolution.tell({subnet: INF if subnet.embed_dim != 24 else 1.0 for subnet in first})
    parents = evolution.best(4)
    assert {parent.embed_dim for parent in parents} == {24}
    depths = {parent.depth for parent in parents}
    children = evolution.ask()[:10]
    assert {child.embed_dim for child in children} == {24}
    assert {child.depth for child in children} <= depths


def test_limits_that_only_the_smallest_meets_are_met():
    space, _ = autoformer('t')
    limit = count_params(space.smallest())
    evolution = Evolution(space, lambda subnet: count_params(subnet) <= limit, generations=2)
    assert evolution.ask() == [space.smallest()]


def test_narrow_limits_are_filled_from_what_meets_them():
    space, _ = autoformer('t')
    evolution = Evolution(space, lambda subnet: count_params(subnet) <= 5.5e6)
    first = evolution.ask()
    assert len(set(first)) == 50
    assert max(map(count_params, first)) <= 5.5e6


@pytest.mark.parametrize(
    ('sizes', 'message'),
    [
        (dict(parents=0), '^parents must be a positive integer, got 0'),
        (dict(population=5), '25 mutations and 25 crossovers exceed the population of 5'),
        (dict(generations=1.5), '^generations must be a positive integer'),
    ],
)
def test_sizes_that_make_no_sense(sizes, message):
    with pytest.raises(UserError, match=message):
        Evolution(SPACE, lambda subnet: True, **sizes)


def test_nan_ranks_behind_infinity():
    evolution = Evolution(SPACE, lambda subnet: True)
    first, second, third = evolution.ask()[:3]
    evolution.tell({first: float('nan'), second: float('inf'), third: 1.0})
    assert evolution.best(3) == [third, second, first]


class Oracle:
    """Knows all distances; remembers what it was asked and told."""

    def __init__(self, is_trusted: bool):
        self.is_trusted = is_trusted
        self.offers, self.learned = [], []

    def learn(self, scores):
        self.learned.append(scores)

    def select(self, children, count):
        self.offers.append((children, count))
        best = sorted(children, key=distance)[:count]
        return [child for child in children if child in best]


def test_draws_are_those_of_the_first_release():
    generations = run(Evolution(LARGE, anything, **SMALL))
    digest = sha256(repr(generations).encode()).hexdigest()  # recorded before there were surrogates
    assert digest == '6c4b2cc092d1e0389e723809593926ce3adaacdff2b1fd6fea0e77e3ac77b86d'


def test_a_surrogate_that_is_not_trusted_changes_nothing():
    surrogate = Oracle(is_trusted=False)
    watched = run(Evolution(LARGE, anything, **SMALL, surrogate=surrogate, oversample=9), distance)
    assert watched == run(Evolution(LARGE, anything, **SMALL), distance)
    assert surrogate.offers == []


def test_the_surrogate_learns_every_score():
    surrogate = Oracle(is_trusted=True)
    generations = run(Evolution(LARGE, anything, **SMALL, surrogate=surrogate), distance)
    assert [list(scores) for scores in surrogate.learned] == generations
    assert all(scores[s] == distance(s) for scores in surrogate.learned for s in scores)


def test_a_trusted_surrogate_selects_the_children_from_more():
    surrogate = Oracle(is_trusted=True)
    sizes = SMALL | dict(mutations=4, crossovers=2)
    generations = run(Evolution(LARGE, anything, **sizes, surrogate=surrogate, oversample=3))
    assert [(len(offer), count) for offer, count in surrogate.offers] == [(12, 4), (6, 2)] * 3
    seen = set(generations[0])
    for i, generation in enumerate(generations[1:]):
        (mutants, _), (crosses, _) = surrogate.offers[2 * i : 2 * i + 2]
        selected = [child for child in generation if child in {*mutants, *crosses}]
        assert len(generation) == 12
        assert sum(map(distance, generation[:4])) == sum(sorted(map(distance, mutants))[:4])
        assert selected[:6] == generation[:6]
        assert not seen & {*generation}
        seen |= {*generation}


@pytest.mark.full
@given(spaces(depths=(1, 2)), st.floats(0, 1))
@few
def test_limits_hold_and_nothing_repeats_with_a_surrogate(space, share):
    counts = sorted(map(count_params, every(space)))
    limit = counts[int(share * (len(counts) - 1))]
    search = Evolution(
        space,
        lambda subnet: count_params(subnet) <= limit,
        **SMALL | dict(generations=2),
        surrogate=Oracle(is_trusted=True),
    )
    asked = flat(run(search))
    assert len(asked) == len(set(asked)) >= 1
    assert all(subnet in space and count_params(subnet) <= limit for subnet in asked)


@pytest.mark.parametrize('seed', range(3))
def test_a_surrogate_that_has_learned_brings_better_children(seed):
    def mean_of_children(surrogate):
        search = Evolution(LARGE, anything, generations=5, seed=seed, surrogate=surrogate)
        return np.mean([distance(child) for child in flat(run(search, distance)[2:])])

    assert mean_of_children(Surrogate(LARGE)) < mean_of_children(None)


@pytest.mark.parametrize('bad', [0, 1.5, None])
def test_oversample_is_a_positive_integer(bad):
    with pytest.raises(UserError, match='^oversample must be a positive integer'):
        Evolution(SPACE, anything, oversample=bad)
