"""Limits on costs: they hold, cheap ones come first, and a survey reports what they leave."""

import re
import sys
from collections import Counter
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import SPACE, autoformer, every, repeatable, spaces

from tas_lora import UserError, count_flops, count_params
from tas_lora.search import Evolution, Limits

COUNTERS = dict(params=count_params, flops=count_flops)
TWO = dict(population=12, generations=2, parents=4, mutations=5, crossovers=5)

few = settings(repeatable, max_examples=15)


def blocks_and_heads(subnet) -> float:
    """In place of a latency: what no counter of ours is."""
    return 0.25 * subnet.depth + 0.5 * sum(subnet.num_heads)


class Spy:
    """A measurement that counts how often it is made of each subnet."""

    def __init__(self, cost=blocks_and_heads):
        self.cost, self.calls = cost, Counter()

    def __call__(self, subnet):
        self.calls[subnet] += 1
        return self.cost(subnet)


def quantiles(values, first: float, second: float) -> tuple[float, float]:
    """Two of ``values``, at these shares of them, the lower one first."""
    values = sorted(values)
    return tuple(values[int(share * (len(values) - 1))] for share in sorted((first, second)))


def chance(space, subnet) -> float:
    """Of a draw to be this subnet: its width, its depth, two genes in each block."""
    genes = (len(space.num_heads) * len(space.mlp_ratio)) ** subnet.depth
    return 1 / (len(space.embed_dim) * len(space.depth) * genes)


def asked_for(evolution):
    while subnets := evolution.ask():
        yield from subnets
        evolution.tell({subnet: count_params(subnet) for subnet in subnets})


@given(spaces(depths=(1, 2)), st.lists(st.floats(0, 1), min_size=6, max_size=6))
@few
def test_every_subnet_asked_for_is_within_all_limits(space, shares):
    costs, everything = COUNTERS | dict(latency=blocks_and_heads), every(space)
    ranges = {
        name: quantiles(map(cost, everything), *shares[2 * i : 2 * i + 2])
        for i, (name, cost) in enumerate(costs.items())
    }
    spy = Spy()
    limits = Limits(ranges, COUNTERS, dict(latency=spy))
    asked = list(asked_for(Evolution(space, limits.allow, **TWO)))

    def is_within(subnet, names):
        return all(ranges[n][0] <= costs[n](subnet) <= ranges[n][1] for n in names)

    assert bool(asked) == any(is_within(subnet, costs) for subnet in everything)
    assert all(is_within(subnet, costs) for subnet in asked)
    assert all(is_within(subnet, COUNTERS) for subnet in spy.calls)
    assert set(asked) <= set(spy.calls)
    assert set(spy.calls.values()) <= {1}


@given(spaces(depths=(1, 2)), st.floats(0, 1), st.floats(0, 1))
@few
def test_the_share_is_that_of_an_enumeration(space, first, second):
    """2,000 draws have a standard error of 0.011 at most."""
    everything = every(space)
    ranges = {
        name: quantiles(map(cost, everything), first, second) for name, cost in COUNTERS.items()
    }
    exact = sum(
        chance(space, subnet)
        for subnet in everything
        if all(low <= COUNTERS[name](subnet) <= high for name, (low, high) in ranges.items())
    )
    share, text = Limits(ranges, COUNTERS).survey(space)
    assert share == pytest.approx(exact, abs=0.045)
    assert text.startswith(f'{round(2000 * share):,} of 2,000 random subnets are within the limits')


def test_a_survey_without_limits():
    assert Limits(None, COUNTERS).survey(SPACE)[0] == 1


def test_a_survey_measures_twenty_and_the_ends():
    spy = Spy(lambda subnet: subnet.embed_dim / 10)  # 1.6 or 2.4, at even odds
    limits = Limits(
        dict(latency=(None, 2), params=(None, count_params(SPACE.largest()) - 1)),
        COUNTERS,
        dict(latency=spy),
    )
    share, text = limits.survey(SPACE)
    found = re.match(
        r'([\d,]+) of 2,000 random subnets are within the limits on counts, and (\d+) of 20 of '
        r'those within the others: params asked for 0 to [\d,]+, the space has [\d,]+ to [\d,]+; '
        r'latency asked for 0 to 2 ms, the space has 1.6 to 2.4 ms; latency alone excludes most, '
        r'([\d.]+)%$',
        text,
    )
    counted, passed = (int(number.replace(',', '')) for number in found.groups()[:2])
    assert share == pytest.approx(counted / 2000 * passed / 20)
    assert 3 <= passed <= 17  # as 998 of 1,000 surveys
    assert float(found[3]) == pytest.approx(100 - 5 * passed)
    assert len(spy.calls) <= 22
    assert set(spy.calls.values()) == {1}


def test_a_survey_of_measured_limits_alone():
    spy = Spy()
    limits = Limits(dict(memory=(None, 1e4)), COUNTERS, dict(memory=spy))
    share, text = limits.survey(autoformer('t')[0])
    assert share == 1
    assert text == (
        '20 of 20 random subnets are within the limits: memory asked for 0 to 10,000 MiB, '
        'the space has 21 to 31.5 MiB'
    )
    assert len(spy.calls) == 22


def test_the_limit_that_excludes_most_is_named():
    """Half of the subnets are 16 wide, one in four has depth 2 and that width."""
    counters = dict(width=lambda s: s.embed_dim, shape=lambda s: s.embed_dim * s.depth)
    share, text = Limits(dict(width=(None, 16), shape=(None, 32)), counters).survey(SPACE)
    assert share == pytest.approx(0.25, abs=0.045)
    assert 'width asked for 0 to 16, the space has 16 to 24; shape asked for 0 to 32' in text
    assert text.endswith(f'; shape alone excludes most, {1 - share:.1%}')


def test_limits_that_only_a_few_subnets_meet():
    space, _ = autoformer('t')
    limits = Limits(dict(params=(None, 5.4e6)), COUNTERS)
    share, text = limits.survey(space)
    assert share < Limits.FEW
    assert 'params asked for 0 to 5,400,000, the space has 5,366,056 to 10,517,272' in text
    asked = list(
        asked_for(
            Evolution(
                space,
                limits.allow,
                population=8,
                generations=1,
                parents=2,
                mutations=4,
                crossovers=4,
            )
        )
    )
    assert asked
    assert max(map(count_params, asked)) <= 5.4e6


@pytest.mark.parametrize(
    ('constraints', 'first'),
    [
        (dict(params=(None, 1000)), '0 of 2,000 random subnets are within the limits: params'),
        (dict(latency=(1e3, None)), '0 of 20 random subnets are within the limits: latency'),
        (
            dict(latency=(None, 1e3), params=(None, 1e3)),
            '0 of 2,000 random subnets are within the limits on counts, and 0 of 0 of those',
        ),
    ],
)
def test_limits_that_nothing_meets_are_told_as_such(constraints, first):
    share, text = Limits(constraints, COUNTERS, dict(latency=blocks_and_heads)).survey(SPACE)
    assert share == 0
    assert text.startswith(first)
    assert text.endswith('; none passes: relax the limits')


def test_what_is_beyond_a_counted_limit_is_not_measured():
    spy = Spy()
    limits = Limits(dict(latency=(None, 100), params=(None, 1)), COUNTERS, dict(latency=spy))
    assert not any(map(limits.allow, every(SPACE)))
    assert not spy.calls


def test_costs_that_are_measured_are_those_that_matter():
    subnet, spies = SPACE.smallest(), dict(latency=Spy(), memory=Spy())
    counted = dict(params=count_params(subnet), flops=count_flops(subnet))
    assert Limits(None, COUNTERS, spies).costs(subnet) == counted
    assert not spies['latency'].calls
    goals = ('cross_entropy', 'memory')
    limits = Limits(None, COUNTERS, spies, goals)
    assert limits.costs(subnet) == counted | dict(memory=1.5)
    assert limits.cost('memory', subnet) == 1.5
    assert limits.cost('flops', subnet) == counted['flops']
    limits = Limits(dict(latency=(0, 2)), COUNTERS, spies)
    assert limits.allow(subnet)
    assert limits.costs(subnet) == counted | dict(latency=1.5)
    assert spies['latency'].calls == spies['memory'].calls == {subnet: 1}


def test_a_check_is_a_few_calls_of_functions():
    """A search may make a million of them: some arithmetic for each block, and no more."""
    space, _ = autoformer('t')
    spec = dict(img_size=224, patch_size=16, in_channels=3, num_classes=1000, head_dim=64)
    counters = {name: partial(count, **spec) for name, count in COUNTERS.items()}
    limits = Limits(dict(params=(0, 1e12), flops=(0, 1e12)), counters)
    rng = np.random.default_rng(0)
    subnets = [space.sample(rng) for _ in range(100)]
    calls = []
    sys.setprofile(lambda frame, event, function: calls.append(event))
    try:
        allowed = list(map(limits.allow, subnets))
    finally:
        sys.setprofile(None)
    assert all(allowed)
    assert calls.count('call') + calls.count('c_call') < 100 * 100


@pytest.mark.parametrize(
    ('constraints', 'measured', 'message'),
    [
        (
            dict(depth=(1, 2)),
            dict(latency=blocks_and_heads),
            r"constraints.depth is unknown; choose from \['flops', 'latency', 'params'\]$",
        ),
        (
            dict(latency=(1, 2)),
            None,
            r"constraints.latency is unknown; choose from \['flops', 'params'\]; it is measured "
            'only if val_cfg.measure is set$',
        ),
        (dict(latency=5), dict(latency=Spy()), r'constraints.latency must be \(low, high\), got 5'),
        (
            dict(latency=(2.5, 1)),
            dict(latency=Spy()),
            '^constraints.latency has low 2.5 above high 1$',
        ),
        (dict(params=(-1, 2)), None, 'constraints.params must be a number from 0 to inf, got -1'),
        (dict(params=('a', 2)), None, "must be a number from 0 to inf, got 'a'"),
        (dict(params=(0, float('nan'))), None, 'must be a number from 0 to inf, got nan'),
        ([('params', 5)], None, r'^constraints must be like dict\(params=\(low, high\)\)'),
    ],
)
def test_limits_that_make_no_sense(constraints, measured, message):
    with pytest.raises(UserError, match=message):
        Limits(constraints, COUNTERS, measured)
