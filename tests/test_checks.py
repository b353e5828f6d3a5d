"""Checks of single values over all that may be wrong, and how a message says where it stands."""

import pickle
import re
from functools import partial

import pytest
from mmengine.registry import HOOKS, MODELS
from mmpretrain.registry import DATASETS
from tiny import SPACE, SPACE_DICT, tiny_config

from tas_lora import UserError
from tas_lora.checks import (
    boolean,
    bounded,
    inside,
    natural,
    of_part,
    one_of,
    positive,
    positives,
    some_of,
    within,
)
from tas_lora.config import addressed
from tas_lora.errors import blame
from tas_lora.structures import SearchSpace, Subnet

NAN, INF, HUGE = float('nan'), float('inf'), 10**400
ODD = ('abc', [], [[1, 2]], {}, {'a': 1}, 1j)

# A check, what is wrong for it, what is right, and how the message names what is allowed.
CHECKS = [
    (
        partial(positive, field='x', kind=int),
        ('1', None, True, -1, 0, 1.5, NAN, INF, HUGE, *ODD),
        (1, 10**9),
        'x must be a positive integer,',
    ),
    (
        partial(positive, field='x', kind=int, most=5),
        ('1', None, True, -1, 0, 1.5, NAN, INF, HUGE, 6, *ODD),
        (1, 5),
        'x must be a positive integer, .*; at most 5$',
    ),
    (
        partial(positive, field='x', kind=float),
        ('1', None, True, -1, 0, NAN, INF, HUGE, *ODD),
        (1e-9, 1, 2.5),
        'x must be a positive number,',
    ),
    (
        partial(natural, field='x'),
        ('1', None, True, -1, 1.5, NAN, INF, *ODD),
        (0, 10**400),
        'x must be an integer from 0 up,',
    ),
    (
        partial(natural, field='x', most=1000),
        ('1', None, True, -1, 1.5, NAN, INF, HUGE, 1001, *ODD),
        (0, 1000),
        'x must be an integer from 0 to 1,000,',
    ),
    (
        partial(bounded, field='x'),
        ('1', None, True, -1, 1.5, NAN, INF, HUGE, *ODD),
        (0, 0.5, 1),
        'x must be a number from 0 to 1,',
    ),
    (
        partial(bounded, field='x', reached=False),
        ('0', None, False, -1, 1, NAN, INF, HUGE, *ODD),
        (0, 0.999),
        'x must be a number from 0 to below 1,',
    ),
    (
        partial(bounded, field='x', most=1e9),
        ('1', None, True, -1, NAN, INF, HUGE, *ODD),
        (0, 1e9),
        r'x must be a number from 0 to 1e\+09,',
    ),
    (
        partial(boolean, field='x'),
        ('True', None, 0, 1, 1.5, NAN, *ODD),
        (True, False),
        'x must be True or False,',
    ),
    (
        partial(one_of, field='x', allowed=('a', 'b')),
        (None, True, 0, -1, 1.5, NAN, INF, *ODD),
        ('a', 'b'),
        "x must be 'a' or 'b',",
    ),
    (
        partial(one_of, field='x', allowed=('a', 'b', 'c')),
        (None, 'd'),
        ('c',),
        "x must be one of 'a' or 'b' or 'c',",
    ),
    (
        partial(some_of, field='x', allowed=('qk', 'fc')),
        ('qk', 'depth', None, True, 0, 1.5, NAN, [], [[1, 2]], ['x'], {}, [None], ['fc'] * 2),
        (['fc'], ('fc', 'qk')),
        r"x must be some of \('qk', 'fc'\), each once,",
    ),
    (
        partial(positives, field='x', kind=int),
        ('12', b'12', None, True, 3, NAN, [], {}),
        ([1], (2, 3)),
        'x must be a list of numbers,',
    ),
    (
        partial(positives, field='x', kind=int, most=5),
        ([1, 0], [1, 6], [1, 1.5], [1, True], (1, 'a'), [1, None], [1, NAN], [1, HUGE]),
        ([1, 5],),
        r'x\[1\] must be a positive integer,',
    ),
    (
        SearchSpace.coerce,
        (None, True, 0, 1.5, NAN, *ODD),
        (SPACE, SPACE_DICT),
        'space must be a dict of exactly',
    ),
    (
        Subnet.coerce,
        (None, True, 0, 1.5, NAN, *ODD[1:]),
        (SPACE.largest(), SPACE.largest().to_dict()),
        'a subnet (is a dict|has exactly the fields)',
    ),
]
PLACES = range(len(CHECKS))


@pytest.mark.parametrize(
    ('place', 'value'), [(place, value) for place in PLACES for value in CHECKS[place][1]]
)
def test_a_wrong_value_is_refused_in_one_line(place, value):
    check, _, _, message = CHECKS[place]
    with pytest.raises(UserError, match=f'^{message}') as error:
        check(value)
    assert '\n' not in str(error.value)
    if isinstance(value, (int, float, str, type(None))):
        assert repr(value) in str(error.value)


@pytest.mark.parametrize(
    ('place', 'value'), [(place, value) for place in PLACES for value in CHECKS[place][2]]
)
def test_a_right_value_is_taken(place, value):
    CHECKS[place][0](value)


# Where a value stands


def refused(*contexts, field: str | None = 'rank') -> str:
    """The message of a value refused inside ``contexts``, the outermost first."""
    with pytest.raises(UserError) as error:
        refuse(list(contexts), field)
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)
    return str(error.value)


def refuse(contexts: list, field: str | None) -> None:
    if not contexts:
        raise UserError('must be less', field)
    with contexts[0]:
        refuse(contexts[1:], field)


def test_the_places_of_a_field_are_joined_by_dots():
    assert refused() == 'rank must be less'
    assert refused(within('mole')) == 'mole.rank must be less'
    assert refused(within('val_cfg'), within('race')) == 'val_cfg.race.rank must be less'


def test_what_is_about_no_field_comes_after_a_colon():
    assert refused(within('model'), field=None) == 'model: must be less'
    assert refused(within('model'), within('head'), field=None) == 'model.head: must be less'
    assert refused(of_part('ElasticViT'), field=None) == 'ElasticViT: must be less'


def test_what_is_about_a_whole_part_comes_after_its_name():
    assert refused(within('model'), within('head'), field='') == 'model.head must be less'
    assert refused(of_part('ElasticViT'), field='') == 'ElasticViT must be less'
    assert refused(field='') == 'must be less'


def test_the_innermost_part_is_the_one_that_is_named():
    assert refused(of_part('Net'), of_part('Head'), within('mole')) == 'Head.mole.rank must be less'
    # A place around a part is not one inside it.
    assert refused(within('model'), of_part('Head')) == 'Head.rank must be less'


def test_a_file_comes_before_all_that_is_said_of_its_content():
    assert refused(inside('a.json, line 3')) == 'a.json, line 3: rank must be less'
    assert refused(inside('a.json'), within('mole')) == 'a.json: mole.rank must be less'
    assert refused(within('measured'), inside('a.json')) == 'measured: a.json: rank must be less'


def test_an_error_of_another_kind_is_said_of_the_part_that_cannot_be_built():
    said = pytest.raises(UserError, match="^model.head cannot be built: KeyError: 'a'$")
    with said, within('model'), blame('cannot be built', 'head'):
        {}['a']


@pytest.mark.parametrize(
    ('registry', 'config', 'message'),
    [
        (
            HOOKS,
            dict(type='tas_lora.MoLEHook', router_warmup_epochs=-1),
            'MoLEHook.router_warmup_epochs',
        ),
        (
            MODELS,
            dict(type='tas_lora.GRURouterHead', space=SPACE_DICT, beta=0),
            'GRURouterHead.beta must',
        ),
        (
            MODELS,
            tiny_config()['model']['backbone'] | dict(mole=3),
            'ElasticViT.mole must be a dict',
        ),
        (
            DATASETS,
            dict(type='tas_lora.HeldOutSplit', dataset={}, part='x'),
            'HeldOutSplit.part must be',
        ),
    ],
)
def test_parts_that_others_build_name_their_class(registry, config, message):
    """MMPretrain's tools have no runner of ours."""
    with pytest.raises(UserError, match=f'^{message}'):
        registry.build(config)


# Places in a whole config


def split(size, **change) -> dict:
    return dict(dataset=dict(type='Twice', dataset=dict(type='tas_lora.S', size=size, **change)))


CONFIG = dict(
    model=dict(type='tas_lora.Net', head=dict(type='tas_lora.Head', rank=3)),
    custom_hooks=[dict(type='Other', size=7), dict(type='tas_lora.Hook', rank=3)],
    train_dataloader=split(50),
    val_dataloader=split(5, seed=None),
    test_dataloader=None,
    subject=dict(type='tas_lora.Subject', rank=3),  # a variable of the config
)


@pytest.mark.parametrize(
    ('part', 'field', 'message', 'expected'),
    [
        ('Net', 'mole.rank', 'must be less, got 3', 'model.mole.rank must be less, got 3'),
        ('Head', 'rank', 'must be less, got 3', 'model.head.rank must be less, got 3'),
        ('Head', '', 'cannot be built', 'model.head cannot be built'),
        ('Head', None, 'too much', 'model.head: too much'),
        ('Hook', 'rank', 'is 3; lower it', 'custom_hooks.1.rank is 3; lower it'),
        # Of two parts of a class the one that has the value, be it a part of the other's.
        ('S', 'size', 'is 50, and too many', 'train_dataloader.dataset.dataset.size is 50, and to'),
        ('S', 'size', 'must be less, got 5', 'val_dataloader.dataset.dataset.size must be less'),
        ('S', 'seed', 'must be less, got None', 'val_dataloader.dataset.dataset.seed must be'),
        # No part has it, or none is of the class.
        ('S', 'size', 'must be less, got 55', 'S.size must be less, got 55'),
        ('S', 'rank', 'must be less, got None', 'S.rank must be less, got None'),
        ('Twins', 'rank', 'must be less, got 3', 'Twins.rank must be less, got 3'),
        ('Subject', 'rank', 'must be less, got 3', 'Subject.rank must be less, got 3'),
    ],
)
def test_a_config_tells_the_place_of_a_part(part, field, message, expected):
    with (
        pytest.raises(UserError, match=f'^{re.escape(expected)}'),
        addressed(CONFIG),
        of_part(part),
    ):
        raise UserError(message, field)
