"""Variants of router, grouping and experts, and the published parameter shares."""

from dataclasses import replace
from itertools import combinations
from math import prod

import numpy as np
import pytest
import torch
from conftest import call_tool
from tiny import SPACE, SPACE_DICT, autoformer, every, images, randomize, tiny_config, tiny_model

from tas_lora import UserError, count_params, load_supernet
from tas_lora.models.heads import (
    ArchitectureGroups,
    GRURouterHead,
    LSTMRouterHead,
    MLPRouterHead,
    ParamCountGroups,
    RandomGroups,
    SingleExpertHead,
)
from tas_lora.models.heads.grouping import ATTRIBUTES

ROUTERS = (LSTMRouterHead, GRURouterHead, MLPRouterHead)


def test_all_twelve_published_shares_of_trainable_parameters(capsys):
    assert call_tool('param_table.py') == 0
    assert '0.53 points' in capsys.readouterr().out


def test_a_wrong_count_is_noticed(capsys, monkeypatch):
    monkeypatch.setattr('tas_lora.models.heads.router_head.LAYERS_PER_BLOCK', 8)
    assert call_tool('param_table.py') == 1


@pytest.mark.parametrize('router', ROUTERS)
def test_every_router_starts_at_its_groups(router):
    space, _ = autoformer('t')
    head, subnet = router(space), space.sample(np.random.default_rng(0))
    own = torch.tensor(head.head_of_blocks(subnet))[:, None, None]
    gates = head(subnet).gather(-1, own.expand(-1, 4, 1))
    e3 = np.exp(3)
    assert gates.flatten().tolist() == pytest.approx([e3 / (e3 + 11)] * gates.numel(), abs=1e-6)


def sees_other_blocks(router) -> bool:
    """Whether the gates of the last block depend on the first."""
    head = randomize(router(SPACE))
    one, other = (
        s
        for s in every(SPACE)
        if s.depth == 2
        and s.num_heads in ((1, 1), (2, 1))
        and s.mlp_ratio == (1.0, 1.0)
        and s.embed_dim == 16
    )
    return not torch.equal(head(one)[-1], head(other)[-1])


def test_recurrent_routers_see_other_blocks_and_the_mlp_does_not():
    assert [sees_other_blocks(router) for router in ROUTERS] == [True, True, False]


@pytest.mark.parametrize('router', ROUTERS)
def test_random_initialisation_has_one_head_for_all_groups(router):
    torch.manual_seed(0)
    head = router(SPACE, init='random')
    assert head.head_weight.shape == (1, 3, 4, 128, 8)
    gates = head(SPACE.largest())
    assert gates.sum(-1).allclose(torch.ones(3, 4))
    assert (gates - 1 / 8).abs().max() > 0.005  # not the same for all experts
    assert router(SPACE, init='random', num_experts=5)(SPACE.largest()).shape == (3, 4, 5)


def test_experts_follow_the_attributes():
    space, _ = autoformer('t')
    space = replace(space, patch_size=(14, 16))
    sizes = dict(num_heads=2, mlp_ratio=2, embed_dim=3, depth=3, patch_size=2)
    for count in range(1, 6):
        for attributes in combinations(ATTRIBUTES, count):
            expected = prod(sizes[name] for name in attributes)
            assert LSTMRouterHead(space, attributes, hidden_size=4).num_experts == expected


def test_random_groups_are_seeded_and_even():
    space, _ = autoformer('t')
    rng = np.random.default_rng(0)
    subnets = [space.sample(rng) for _ in range(400)]
    groups = RandomGroups(space, 12)
    drawn = np.concatenate([groups(subnet) for subnet in subnets])
    assert [groups(s) for s in subnets] == [RandomGroups(space, 12)(s) for s in subnets]
    assert [groups(s) for s in subnets] != [RandomGroups(space, 12, seed=1)(s) for s in subnets]
    share = np.bincount(drawn, minlength=12) / len(drawn)
    assert share.min() > 0.07
    assert share.max() < 0.10


def test_parameter_groups_are_ordered_and_even():
    space, _ = autoformer('t')
    groups, rng = ParamCountGroups(space, 12), np.random.default_rng(1)
    subnets = sorted((space.sample(rng) for _ in range(600)), key=count_params)
    drawn = [groups(subnet) for subnet in subnets]
    assert all(len(set(blocks)) == 1 for blocks in drawn)
    firsts = [blocks[0] for blocks in drawn]
    assert firsts == sorted(firsts)
    assert groups(space.smallest())[0] == 0
    assert groups(space.largest())[0] == 11
    assert min(np.bincount(firsts, minlength=12)) > 600 / 12 / 2


@pytest.mark.parametrize('grouping', ['RandomGroups', 'ParamCountGroups'])
def test_other_groupings_keep_the_number_of_experts(grouping):
    head = LSTMRouterHead(SPACE, grouping=dict(type=f'tas_lora.{grouping}'))
    assert head.num_experts == len(head.groups) == 8
    with torch.no_grad():
        assert head(SPACE.largest()).argmax(-1)[:, 0].tolist() == head.groups(SPACE.largest())


def test_clusters_lower_the_number_of_experts():
    space, _ = autoformer('t')
    clusters = dict(embed_dim=[[192, 216], [240]], num_heads=[[3, 4]])
    groups = ArchitectureGroups(space, clusters=clusters)
    assert len(groups) == 2 * 1 * 2  # widths, heads, ratios
    small, large = space.smallest(), space.largest()
    middle = type(small)(216, small.num_heads, small.mlp_ratio)
    assert groups(small) == groups(middle)
    assert groups(small) != groups(type(small)(240, small.num_heads, small.mlp_ratio))
    assert set(groups(large)) == {3}


@pytest.mark.parametrize(
    ('clusters', 'message'),
    [
        (dict(embed_dim=[[16]]), r'clusters.embed_dim must hold every choice once: \[16, 24\]'),
        (dict(embed_dim=[[16, 24], [16]]), 'every choice once'),
        (dict(depth=[[2, 3]]), 'clusters.depth: not grouped by'),
    ],
)
def test_clusters_that_do_not_fit(clusters, message):
    with pytest.raises(UserError, match=message):
        ArchitectureGroups(SPACE, clusters=clusters)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (
            dict(attributes=['width']),
            r"^LSTMRouterHead.attributes must be some of \('num_heads', 'mlp_ratio'",
        ),
        (dict(init='zeros'), "^LSTMRouterHead.init must be 'group_wise' or 'random', got 'zeros'"),
        (dict(num_experts=5), '^LSTMRouterHead.num_experts is 5, but there are 8 groups'),
        (
            dict(init='random', num_experts=0),
            'LSTMRouterHead.num_experts must be a positive integer',
        ),
        (dict(beta='high'), '^LSTMRouterHead.beta must be a positive number'),
        (dict(grouping='RandomGroups'), "Head.grouping cannot be 'RandomGroups'; choose from"),
        (dict(grouping=dict(type='tas_lora.UniformSampling')), 'choose from .*ParamCountGroups'),
        (
            dict(grouping=dict(type='tas_lora.RandomGroups', seed=-1)),
            '^RandomGroups.seed must be an integer',
        ),
    ],
)
def test_routers_that_make_no_sense(arguments, message):
    with pytest.raises(UserError, match=message):
        LSTMRouterHead(SPACE, **arguments)


def test_a_router_that_does_not_exist():
    config = tiny_config()
    config['model']['router']['type'] = 'GRU'
    with pytest.raises(UserError, match='^model.router cannot be .* choose from .*GRURouterHead'):
        load_supernet(config)


def test_one_shared_lora_adds_the_same_to_every_subnet():
    config = tiny_config()
    config['model']['backbone']['mole'] = dict(num_experts=1, rank=2)
    config['model']['router'] = dict(type='tas_lora.SingleExpertHead', space=SPACE_DICT)
    model = load_supernet(config)
    assert not list(model.router.parameters())
    fc1 = model.backbone.blocks[0].fc1
    torch.nn.init.normal_(fc1.lora_b)
    for subnet in (SPACE.smallest(), SPACE.largest()):
        model.set_subnet(subnet)
        model.merge_experts()
        out, width = fc1.merged.shape
        expected = fc1.weight[:out, :width] + fc1.lora_b[0, :out] @ fc1.lora_a[0, :, :width] / 2
        assert (fc1.merged - expected).abs().max() < 1e-6
    assert SingleExpertHead(SPACE)(SPACE.largest()).shape == (3, 4, 1)


def test_experts_on_chosen_layers_alone():
    config = tiny_config()
    config['model']['backbone']['mole'] = dict(num_experts=8, rank=2, layers=['qkv', 'fc2'])
    model = load_supernet(config)
    kinds = {name.split('.')[-2] for name, _ in model.named_parameters() if 'lora_' in name}
    assert kinds == {'qkv', 'fc2'}
    model(images()).sum().backward()
    assert model.backbone.blocks[0].fc2.lora_b.grad.abs().sum() > 0
    for wrong in (['fc3'], 'qkv'):
        config['model']['backbone']['mole'] = dict(num_experts=8, rank=2, layers=wrong)
        with pytest.raises(UserError, match='mole.layers must be some of'):
            load_supernet(config)


def test_rank_sets_the_size_of_the_experts():
    sizes = []
    for rank in (1, 3):
        config = tiny_config()
        config['model']['backbone']['mole'] = dict(num_experts=8, rank=rank)
        sizes.append(
            sum(p.numel() for n, p in load_supernet(config).named_parameters() if 'lora_' in n)
        )
    assert sizes[1] == 3 * sizes[0]


def test_state_dict_of_one_router_does_not_fit_another():
    lstm, gru = tiny_model(), tiny_config()
    gru['model']['router']['type'] = 'tas_lora.GRURouterHead'
    with pytest.raises(UserError, match=r'the first router.encoder.\S+: .* in the checkpoint'):
        load_supernet(gru).load_state_dict(lstm.state_dict())
