"""Subnets and search spaces as values."""

import json
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import SEARCHED, SPACE, SPACE_DICT, autoformer, every, repeatable, spaces

from tas_lora import SearchSpace, Subnet, UserError, count_params

SUBNET = Subnet(16, (1, 2), (1.0, 2.0))
FIELDS = dict(embed_dim=16, num_heads=[1, 2], mlp_ratio=[1.0, 2.0])
NAN, INF = float('nan'), float('inf')

seeds = st.integers(0, 2**32 - 1)
probabilities = st.sampled_from([0.0, 0.2, 0.5, 1.0])


def rng(seed=0):
    return np.random.default_rng(seed)


# Subnet


def test_lists_and_numpy_numbers_become_tuples_of_plain_numbers():
    subnet = Subnet(np.int64(16), [np.int32(1), 2], [np.float32(1), 2])
    assert subnet == SUBNET
    numbers = [subnet.embed_dim, *subnet.num_heads, *subnet.mlp_ratio]
    assert [type(number) for number in numbers] == [int, int, int, float, float]


def test_equal_subnets_hash_alike():
    same = Subnet(16, [1, 2], [1, 2])
    assert same == SUBNET
    assert len({same, SUBNET, Subnet(16, [2, 1], [1, 2])}) == 2


def test_subnets_cannot_be_changed():
    with pytest.raises(AttributeError):
        SUBNET.embed_dim = 24


def test_depth_and_truncated_hidden_widths():
    subnet = Subnet(10, [1, 1, 1], [0.59, 1.99, 3])
    assert subnet.depth == 3
    assert subnet.hidden_dims == (5, 19, 30)


@given(spaces(), seeds)
@repeatable
def test_dict_and_json_give_the_subnet_back(space, seed):
    subnet = space.sample(rng(seed))
    assert Subnet.from_dict(subnet.to_dict()) == subnet
    assert Subnet.from_dict(json.loads(json.dumps(subnet.to_dict()))) == subnet


@pytest.mark.parametrize('value', [0, -16, 16.0, '16', True, None, NAN, INF, [16]])
def test_bad_width_is_refused(value):
    message = f'embed_dim must be a positive integer, got {value!r}'
    with pytest.raises(UserError, match=f'^{re.escape(message)}$'):
        Subnet(value, [1, 2], [1, 2])


@pytest.mark.parametrize('value', [0, -1, 1.0, '1', True, None, NAN, INF, [1]])
def test_bad_heads_are_refused(value):
    message = f'num_heads[1] must be a positive integer, got {value!r}'
    with pytest.raises(UserError, match=f'^{re.escape(message)}$'):
        Subnet(16, [1, value], [1, 2])


@pytest.mark.parametrize('value', [0, -1.0, '1.0', True, None, NAN, INF, -INF, [1.0], 1j])
def test_bad_ratio_is_refused(value):
    message = f'mlp_ratio[1] must be a positive number, got {value!r}'
    with pytest.raises(UserError, match=f'^{re.escape(message)}$'):
        Subnet(16, [1, 2], [1, value])


@pytest.mark.parametrize('field', ['num_heads', 'mlp_ratio'])
@pytest.mark.parametrize('value', [2, '12', [], (), None, {1: 2}, {1, 2}])
def test_what_is_no_list_is_refused(field, value):
    message = f'{field} must be a list of numbers, got {value!r}'
    with pytest.raises(UserError, match=f'^{re.escape(message)}$'):
        Subnet(**FIELDS | {field: value})


def test_lists_of_different_length_are_refused():
    with pytest.raises(UserError, match='num_heads has 2 blocks and mlp_ratio 3'):
        Subnet(16, [1, 2], [1, 2, 3])


def test_ratio_that_leaves_no_channel_is_refused():
    with pytest.raises(UserError, match=r'mlp_ratio 0\.05 leaves no MLP channel at embed_dim 16'):
        Subnet(16, [1, 2], [1, 0.05])


@pytest.mark.parametrize('missing', FIELDS)
def test_missing_field_is_refused(missing):
    fields = {name: value for name, value in FIELDS.items() if name != missing}
    with pytest.raises(UserError, match=rf'has exactly the fields .*{missing}.*, got \['):
        Subnet.from_dict(fields)


def test_unknown_field_is_refused():
    with pytest.raises(UserError, match=r"got \['embed_dim', .*'depth'\]"):
        Subnet.from_dict(FIELDS | dict(depth=2))


@pytest.mark.parametrize('value', [[16, 1, 1.0], 'smallest', None, 16])
def test_subnet_from_no_dict_is_refused(value):
    with pytest.raises(UserError, match=f'a subnet is a dict .*, got {re.escape(repr(value))}'):
        Subnet.from_dict(value)


@pytest.mark.parametrize(
    ('subnet', 'message'),
    [
        (Subnet(24, [1, 2], [1, 1]), 'embed_dim is 24, the supernet has 16'),
        (Subnet(16, [1, 2, 1], [1, 2, 1]), 'depth is 3, the supernet has 2'),
        (Subnet(16, [2, 1], [1, 2]), 'num_heads[0] is 2, the supernet has 1'),
        (Subnet(16, [1, 3], [1, 2]), 'num_heads[1] is 3, the supernet has 2'),
        (Subnet(16, [1, 2], [1, 2.5]), 'mlp_ratio[1] is 2.5 (40 wide), the supernet has 32'),
    ],
)
def test_what_does_not_fit_is_refused(subnet, message):
    with pytest.raises(UserError, match=re.escape(f'the teacher does not fit: {message}; ')):
        subnet.check_fits(SUBNET, 'the teacher')


def test_what_fits_passes():
    SUBNET.check_fits(SUBNET)
    Subnet(16, [1], [1]).check_fits(SUBNET)
    Subnet(8, [1, 2], [2, 4]).check_fits(SUBNET)  # wider MLPs in ratio, not in channels


def test_published_subnet_fits_its_supernet_though_outside_its_space():
    space, supernet = autoformer('t')
    SEARCHED['t'].check_fits(supernet)
    assert SEARCHED['t'] not in space


# SearchSpace


def test_lists_become_tuples_and_equal_spaces_hash_alike():
    space = SearchSpace((16, 24), (2, 3), (1, 2), (1, 2))
    assert (space.embed_dim, space.mlp_ratio) == ((16, 24), (1, 2))
    assert space == SPACE
    assert hash(space) == hash(SPACE)


@pytest.mark.parametrize('field', SPACE_DICT)
@pytest.mark.parametrize('value', [[], '12', 2, None, {1, 2}])
def test_space_without_a_list_of_choices_is_refused(field, value):
    message = f'{field} must be a list of numbers, got {value!r}'
    with pytest.raises(UserError, match=f'^{re.escape(message)}$'):
        SearchSpace(**SPACE_DICT | {field: value})


@pytest.mark.parametrize('field', SPACE_DICT)
@pytest.mark.parametrize('value', [0, -1, '1', True, None, NAN, INF, [1], 10**400])
def test_bad_choice_is_refused(field, value):
    kind = 'number' if field == 'mlp_ratio' else 'integer'
    message = f'{field}[1] must be a positive {kind}, got {value!r}'
    with pytest.raises(UserError, match=f'^{re.escape(message)}$'):
        SearchSpace(**SPACE_DICT | {field: [1, value]})


@pytest.mark.parametrize('field', ['embed_dim', 'depth', 'num_heads'])
def test_fraction_is_refused_where_integers_count(field):
    message = rf'^{field}\[1\] must be a positive integer, got 2\.0'
    with pytest.raises(UserError, match=message):
        SearchSpace(**SPACE_DICT | {field: [1, 2.0]})


@pytest.mark.parametrize('field', SPACE_DICT)
def test_repeated_choice_is_refused(field):
    message = rf'^{field} repeats a choice: \[2(\.0)?, 3(\.0)?, 2(\.0)?\]'
    with pytest.raises(UserError, match=message):
        SearchSpace(**SPACE_DICT | {field: [2, 3, 2]})


@given(spaces(depths=(1, 2, 3)))
@repeatable
def test_size_counts_the_subnets(space):
    subnets = every(space)
    assert space.size == len(subnets) == len(set(subnets))
    assert list(space) == subnets


def test_every_patch_size_is_enumerated():
    space = SearchSpace(**SPACE_DICT, patch_size=(2, 4))
    assert len(set(space)) == space.size == 2 * SearchSpace(**SPACE_DICT).size
    assert all(subnet in space for subnet in space)


def test_sample_is_a_function_of_the_seed():
    draws = [[SPACE.sample(generator) for _ in range(20)] for generator in map(rng, (7, 7, 8))]
    assert draws[0] == draws[1] != draws[2]


@given(spaces(), seeds)
@repeatable
def test_samples_are_in_the_space(space, seed):
    generator = rng(seed)
    assert all(space.sample(generator) in space for _ in range(5))


@given(spaces(depths=(1, 2)), st.integers(0, 100), st.integers(1, 12))
@repeatable
def test_draws_are_distinct_and_a_function_of_the_seed(space, seed, count):
    if count > space.size:
        with pytest.raises(UserError, match='distinct subnets'):
            space.sample_distinct(count, rng(seed))
        return
    drawn = space.sample_distinct(count, rng(seed))
    generator = rng(seed)
    row = [space.sample(generator) for _ in range(2000)]
    assert drawn == sorted(set(row), key=row.index)[:count]


@pytest.mark.parametrize(
    'subnet',
    [
        Subnet(20, [1, 2], [1, 2]),
        Subnet(16, [1], [1]),
        Subnet(16, [1, 3], [1, 2]),
        Subnet(16, [1, 2], [1, 1.5]),
    ],
)
def test_other_values_are_not_in_the_space(subnet):
    assert SUBNET in SPACE
    assert subnet not in SPACE


def test_subnets_of_one_depth_are_equally_likely():
    space, each = SearchSpace((16, 24), (2,), (1, 2), (1.0, 2.0)), 200
    generator = rng()
    counts = Counter(space.sample(generator) for _ in range(each * space.size))
    chi_square = sum((counts[subnet] - each) ** 2 / each for subnet in every(space))
    assert chi_square < 62  # 31 degrees of freedom: one in a thousand is above


def test_depths_are_equally_likely():
    generator = rng()
    shallow = sum(SPACE.sample(generator).depth == 2 for _ in range(10_000))
    assert abs(shallow - 5000) < 165  # one in a thousand is further off


@given(spaces(), seeds, probabilities, probabilities)
@repeatable
def test_mutants_stay_in_the_space(space, seed, gene_prob, shape_prob):
    generator = rng(seed)
    subnet = space.sample(generator)
    for _ in range(5):
        subnet = space.mutate(subnet, generator, gene_prob, shape_prob)
        assert subnet in space


@given(spaces(), seeds)
@repeatable
def test_mutation_without_probability_changes_nothing(space, seed):
    generator = rng(seed)
    subnet = space.sample(generator)
    assert space.mutate(subnet, generator, 0, 0) == subnet


@given(spaces(), seeds)
@repeatable
def test_mutation_of_shape_alone_keeps_the_genes_of_the_blocks_that_stay(space, seed):
    generator = rng(seed)
    subnet = space.sample(generator)
    mutant = space.mutate(subnet, generator, 0, 1)
    kept = min(subnet.depth, mutant.depth)
    assert mutant.num_heads[:kept] == subnet.num_heads[:kept]
    assert mutant.mlp_ratio[:kept] == subnet.mlp_ratio[:kept]


def test_mutation_redraws_genes_as_often_as_asked():
    space = SearchSpace((8,), (10,), tuple(range(1, 101)), (1.0,))
    generator, subnet = rng(), space.smallest()
    mutants = [space.mutate(subnet, generator, 0.2, 0.4) for _ in range(1000)]
    changed = sum(heads != 1 for mutant in mutants for heads in mutant.num_heads)
    assert abs(changed - 0.2 * 0.99 * 10_000) < 135  # one in a thousand is further off


def test_mutation_redraws_depth_and_width_as_often_as_asked():
    generator, subnet = rng(), SPACE.smallest()
    mutants = [SPACE.mutate(subnet, generator, 0.2, 0.4) for _ in range(10_000)]
    for changed in (
        sum(mutant.depth != subnet.depth for mutant in mutants),
        sum(mutant.embed_dim != subnet.embed_dim for mutant in mutants),
    ):
        assert abs(changed - 0.4 / 2 * 10_000) < 135  # a redraw returns the old value half the time


def genes(subnet):
    return subnet.num_heads, subnet.mlp_ratio


@given(spaces(), seeds)
@repeatable
def test_children_take_each_gene_from_a_parent(space, seed):
    generator = rng(seed)
    a = space.sample(generator)
    b = replace(space, depth=(a.depth,)).sample(generator)
    child = space.crossover(a, b, generator)
    assert child in space
    assert child.embed_dim in (a.embed_dim, b.embed_dim)
    for of_child, of_a, of_b in zip(*map(genes, (child, a, b)), strict=True):
        assert all(g in pair for g, *pair in zip(of_child, of_a, of_b, strict=True))


def test_children_take_half_of_each_parent():
    a, b = Subnet(16, [1] * 10, [1.0] * 10), Subnet(24, [2] * 10, [2.0] * 10)
    generator = rng()
    children = [SPACE.crossover(a, b, generator) for _ in range(10_000)]
    for from_a in (
        sum(child.embed_dim == 16 for child in children),
        sum(child.num_heads.count(1) for child in children) / 10,
        sum(child.mlp_ratio.count(1.0) for child in children) / 10,
    ):
        assert abs(from_a - 5000) < 165  # one in a thousand is further off


def test_parents_of_different_depth_are_refused():
    with pytest.raises(ValueError, match='parents differ in depth: 2 and 1'):
        SPACE.crossover(SUBNET, Subnet(16, [1], [1]), rng())


@given(spaces(depths=(1, 2)))
@repeatable
def test_smallest_and_largest_have_least_and_most_parameters(space):
    counts = [count_params(subnet) for subnet in every(space)]
    assert space.smallest() in space
    assert space.largest() in space
    assert count_params(space.smallest()) == min(counts)
    assert count_params(space.largest()) == max(counts)


@pytest.mark.parametrize(
    'fields',
    [
        dict(mlp_ratio=[1e308, 1.0]),
        dict(mlp_ratio=[10**400, 1.0]),
        dict(embed_dim=10**400),
        dict(mlp_ratio=[np.True_, 1.0]),
        dict(mlp_ratio=[b'1', 1.0]),
        dict(num_heads=b'12'),
    ],
)
def test_odd_values_are_refused_by_our_own_error(fields):
    with pytest.raises(UserError, match=next(iter(fields))):
        Subnet(**dict(embed_dim=16, num_heads=[1, 1], mlp_ratio=[1.0, 1.0]) | fields)


def test_keys_of_mixed_types_are_refused():
    with pytest.raises(UserError, match='exactly the fields'):
        Subnet.from_dict({1: 2, 'a': 3})


def test_space_takes_numpy_numbers():
    space = SearchSpace([np.int64(16)], [np.int32(2)], [np.int8(1)], [np.float32(0.5)])
    assert space == SearchSpace([16], [2], [1], [0.5])


def test_space_whose_smallest_mlp_is_empty_is_refused():
    with pytest.raises(UserError, match='no MLP channel'):
        SearchSpace([1, 16], [1], [1], [0.5, 2.0])


@pytest.mark.parametrize('fields', [dict(width=[1]), {}, [1, 2], None])
def test_space_of_other_fields_is_refused(fields):
    with pytest.raises(UserError, match='^space must be a dict of exactly'):
        SearchSpace.coerce(fields)
