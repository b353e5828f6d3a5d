"""The router: how it starts, what it reads, what it refuses."""

from itertools import product

import numpy as np
import pytest
import torch
from tiny import MOLE, SEARCHED, SPACE, SPACE_DICT, autoformer, tiny_config

from tas_lora import Subnet, UserError, load_supernet
from tas_lora.models import LSTMRouterHead

EXPERTS = dict(t=12, s=27, b=18)
TINY = Subnet(16, [1, 2, 1], [1.0, 2.0, 1.0])


@pytest.fixture(scope='module', params=EXPERTS)
def autoformer_router(request):
    """A fresh router for AutoFormer-T, -S or -B, and the name of that space."""
    space, _ = autoformer(request.param)
    return LSTMRouterHead(space), request.param


def tiny_router(**kwargs) -> LSTMRouterHead:
    torch.manual_seed(0)
    return LSTMRouterHead(SPACE_DICT, hidden_size=16, **kwargs)


def trained_router() -> LSTMRouterHead:
    """A router that is no longer at its start, where it ignores the LSTM."""
    router = tiny_router()
    torch.nn.init.normal_(router.head_weight)
    return router


def samples(space, count=5):
    rng = np.random.default_rng(0)
    return [space.sample(rng) for _ in range(count)]


# Start


def test_there_is_an_expert_for_each_group(autoformer_router):
    router, name = autoformer_router
    assert router.num_experts == EXPERTS[name]


@torch.no_grad()
def test_each_block_starts_with_the_expert_of_its_group(autoformer_router):
    router, name = autoformer_router
    space, K = router.space, EXPERTS[name]
    groups = list(product(space.num_heads, space.mlp_ratio, space.embed_dim))
    own, other = (np.exp(logit) / (np.exp(3) + K - 1) for logit in (3, 0))
    for subnet in samples(space):
        gates = router(subnet)
        assert gates.shape == (subnet.depth, 4, K)
        blocks = zip(subnet.num_heads, subnet.mlp_ratio, strict=True)
        for block, (heads, ratio) in enumerate(blocks):
            expected = torch.full((4, K), other, dtype=torch.float)
            expected[:, groups.index((heads, ratio, subnet.embed_dim))] = own
            torch.testing.assert_close(gates[block], expected, rtol=0, atol=1e-6)


def test_beta_is_the_logit_of_the_own_expert():
    gates = tiny_router(beta=1.0)(TINY)
    assert gates.max().item() == pytest.approx(np.e / (np.e + 7), abs=1e-6)


@pytest.mark.parametrize(('name', 'millions'), [('t', 1.24), ('s', 5.47), ('b', 2.87)])
def test_router_has_the_size_that_published_figures_imply(name, millions):
    space, _ = autoformer(name)
    router, K, blocks = LSTMRouterHead(space), EXPERTS[name], max(space.depth)
    assert router.encoder.input_size == 256
    heads = router.head_weight.numel() + router.head_bias.numel()
    assert heads == K * 4 * blocks * (128 + 1) * K
    total = sum(parameter.numel() for parameter in router.parameters())
    assert total == pytest.approx(millions * 1e6, abs=0.02e6)


@pytest.mark.parametrize(
    ('attributes', 'experts', 'inputs'),
    [
        (('num_heads', 'mlp_ratio', 'embed_dim'), 12, 256),
        (('num_heads', 'mlp_ratio', 'embed_dim', 'depth'), 36, 256),
        (('num_heads', 'embed_dim'), 6, 256),
        (('num_heads',), 2, 128),
        (('depth',), 3, 128),
    ],
)
def test_attributes_decide_the_groups(attributes, experts, inputs):
    router = LSTMRouterHead(autoformer('t')[0], attributes)
    assert router.num_experts == experts
    assert router.encoder.input_size == inputs
    for subnet in samples(router.space, 2):
        own = torch.tensor(router.head_of_blocks(subnet))
        assert torch.equal(router(subnet).argmax(dim=-1), own[:, None].expand(-1, 4))


def test_blocks_share_a_group_when_they_agree_in_the_attributes():
    router = tiny_router(attributes=('num_heads', 'embed_dim'))
    first, second, third = router.head_of_blocks(TINY)
    assert first == third != second
    assert router.head_of_blocks(Subnet(16, [1, 1], [2.0, 1.0])) == [first, first]
    assert first not in router.head_of_blocks(Subnet(24, [1, 2], [1.0, 1.0]))


# What it computes


@torch.no_grad()
def test_gates_are_on_the_simplex():
    router = trained_router()
    for subnet in samples(SPACE):
        gates = router(subnet)
        assert (gates >= 0).all()
        torch.testing.assert_close(gates.sum(dim=-1), torch.ones(subnet.depth, 4))


@torch.no_grad()
def test_gates_are_the_heads_applied_to_the_lstm():
    router = trained_router()
    heads, ratio, width = (router.embeddings[n] for n in ('num_heads', 'mlp_ratio', 'embed_dim'))
    steps = [
        torch.cat([heads.weight[h] + ratio.weight[r], width.weight[0]])
        for h, r in ((0, 0), (1, 1), (0, 0))  # the choices of TINY
    ]
    hidden, _ = router.encoder(torch.stack(steps))
    for block, group in enumerate((0, 6, 0)):
        for layer in range(4):
            weight, bias = (t[group, block, layer] for t in (router.head_weight, router.head_bias))
            expected = (hidden[block] @ weight + bias).softmax(dim=0)
            torch.testing.assert_close(router(TINY)[block, layer], expected)


@torch.no_grad()
def test_a_block_changes_the_gates_of_later_blocks_alone():
    router = trained_router()
    before = router(TINY)
    after = router(Subnet(16, [1, 1, 1], TINY.mlp_ratio))
    assert torch.equal(before[0], after[0])
    assert not torch.isclose(before[2], after[2], atol=1e-4).all(dim=-1).any()


@torch.no_grad()
def test_first_block_changes_the_gates_of_all_others():
    router = trained_router()
    before = router(TINY)
    after = router(Subnet(16, [2, 2, 1], TINY.mlp_ratio))
    assert not torch.isclose(before[1:], after[1:], atol=1e-4).all(dim=-1).any()


@torch.no_grad()
def test_width_changes_the_gates():
    router = trained_router()
    wide = Subnet(24, TINY.num_heads, TINY.mlp_ratio)
    assert not torch.isclose(router(TINY), router(wide), atol=1e-4).all(dim=-1).any()


def test_only_heads_of_the_groups_present_learn():
    router = trained_router()
    router(TINY)[..., 0].square().sum().backward()
    used = set(zip(router.head_of_blocks(TINY), range(TINY.depth), strict=True))
    assert len({group for group, _ in used}) == 2
    for grad in (router.head_weight.grad, router.head_bias.grad):
        learned = {tuple(index) for index in grad.flatten(2).any(dim=-1).nonzero().tolist()}
        assert learned == used


def test_all_of_the_router_learns():
    router = trained_router()
    router(TINY)[..., 0].square().sum().backward()
    assert all(parameter.grad.any() for parameter in router.parameters())


# What it refuses


@pytest.mark.parametrize('attributes', [('num_heads', 'width'), (), 'depth'])
def test_unknown_attributes_are_refused(attributes):
    with pytest.raises(UserError, match='attributes must be some of .*num_heads.*, got') as error:
        tiny_router(attributes=attributes)
    assert repr(attributes) in str(error.value)


def test_block_outside_all_groups_is_refused():
    with pytest.raises(UserError, match='block 1 .*num_heads 3, mlp_ratio 2') as error:
        tiny_router()(Subnet(16, [1, 3], [1.0, 2.0]))
    choices = 'num_heads [1, 2], mlp_ratio [1.0, 2.0], embed_dim [16, 24]'
    assert choices in str(error.value)


def test_published_subnet_outside_its_space_is_refused():
    router = LSTMRouterHead(autoformer('t')[0])
    with pytest.raises(UserError, match=r'block 2 .*mlp_ratio 3, .*mlp_ratio \[3\.5, 4\.0\]'):
        router(SEARCHED['t'])


def test_attributes_not_read_may_have_any_value():
    router = tiny_router(attributes=('num_heads',))
    assert router(Subnet(20, [1, 2], [1.5, 3.0])).shape == (2, 4, 2)


def test_too_deep_a_subnet_is_refused():
    with pytest.raises(UserError, match=r'has 4 blocks, the router 3 positions; .*\(2, 3\)'):
        tiny_router()(Subnet(16, [1] * 4, [1.0] * 4))


def test_number_of_experts_must_be_that_of_the_groups():
    config = tiny_config()
    config['model']['backbone']['mole'] = MOLE | dict(num_experts=5)
    with pytest.raises(UserError, match='num_experts is 5, but router.space has 8 groups'):
        load_supernet(config)


@pytest.mark.parametrize('missing', ['mole', 'router'])
def test_experts_and_router_go_together(missing):
    config = tiny_config()
    model = config['model']
    del (model if missing == 'router' else model['backbone'])[missing]
    with pytest.raises(UserError, match='experts and router go together'):
        load_supernet(config)


def test_space_must_fit_the_supernet():
    config = tiny_config()
    config['model']['backbone']['arch'] = SPACE.smallest().to_dict()
    del config['model']['head']['in_channels']
    with pytest.raises(UserError, match='the largest subnet of router.space does not fit'):
        load_supernet(config)


def test_classifier_refuses_a_block_outside_all_groups_and_keeps_its_subnet():
    model = load_supernet(tiny_config())
    before = model.subnet
    with pytest.raises(UserError, match='belongs to no group'):
        model.set_subnet(Subnet(16, [1], [1.5]))
    assert model.subnet == before


def test_repeated_attribute_is_refused():
    with pytest.raises(UserError, match='each once'):
        LSTMRouterHead(SPACE_DICT, attributes=('num_heads', 'num_heads'))
