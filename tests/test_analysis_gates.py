"""Gates and their usage: against the router's formula, enumeration, and by the tool."""

from math import e, log

import numpy as np
import pytest
import torch
from analysed import SMALL, analyse, named, result, write_checkpoint, write_config
from hypothesis import given
from hypothesis import strategies as st
from tiny import MOLE, SPACE, every, randomize, repeatable, tiny_config, tiny_model

from tas_lora import load_supernet
from tas_lora.analysis.gates import entropy, gate_usage, layer_gates, usage_summary

ALL = every(SPACE)
K = 8
OWN, OTHER = e**3 / (e**3 + K - 1), 1 / (e**3 + K - 1)  # group-wise initialisation, beta 3


def groups(subnet) -> list[int]:
    """Group of each block by its place in the product of heads, MLP ratios and widths."""
    width = [16, 24].index(subnet.embed_dim)
    return [
        ([1, 2].index(heads) * 2 + [1.0, 2.0].index(ratio)) * 2 + width
        for heads, ratio in zip(subnet.num_heads, subnet.mlp_ratio, strict=True)
    ]


def model_with(**mole):
    config = tiny_config()
    config['model']['backbone']['mole'] = MOLE | mole
    torch.manual_seed(0)
    return randomize(load_supernet(config), std=0.4)


def test_initial_gates_are_those_of_the_formula():
    model = tiny_model()
    for subnet in ALL[::17]:
        gates = layer_gates(model, subnet)
        assert len(gates) == 4 * subnet.depth
        for b, group in enumerate(groups(subnet)):
            expected = [OWN if k == group else OTHER for k in range(K)]
            for kind in ('qkv', 'proj', 'fc1', 'fc2'):
                np.testing.assert_allclose(gates[f'block {b} {kind}'], expected, atol=1e-6)


def test_layers_without_experts_are_left_out():
    model = model_with(layers=['qkv', 'fc2'])
    gates, rows = layer_gates(model, ALL[-1]), model.router(ALL[-1]).detach().numpy()
    assert list(gates) == [f'block {b} {kind}' for b in range(3) for kind in ('qkv', 'fc2')]
    for name, row in gates.items():
        b, place = int(name.split()[1]), ('qkv', None, None, 'fc2').index(name.split()[2])
        np.testing.assert_allclose(row, rows[b, place], atol=1e-6)


def test_a_layer_with_fewer_experts_has_the_gates_it_merges_with():
    model = model_with(layer_experts=4)
    gates, rows = layer_gates(model, ALL[-1]), model.router(ALL[-1]).detach().numpy()
    for b in range(3):
        pairs = [rows[b, 0][2 * k] + rows[b, 0][2 * k + 1] for k in range(4)]
        np.testing.assert_allclose(gates[f'block {b} qkv'], pairs, atol=1e-6)


def test_layers_are_those_of_the_same_block_in_all_subnets():
    """Which blocks run depends on the depth, and each block has experts of its own number."""
    config = tiny_config()
    importance = [[1, 2, 3, 4], [9, 9, 9, 9], [4, 3, 2, 1]]
    config['model']['backbone'] |= dict(
        mole=MOLE | dict(layer_experts=4, importance=importance), block_order=[2, 0, 1]
    )
    model = load_supernet(config)
    subnets = [SPACE.smallest(), SPACE.largest()]  # the first runs the blocks 0 and 2
    names = [{int(name.split()[1]) for name in layer_gates(model, s)} for s in subnets]
    assert names == [{0, 2}, {0, 1, 2}]
    usage = gate_usage([layer_gates(model, subnet) for subnet in subnets])
    assert [name.split()[1] for name in usage] == list('000011112222')
    for name, layer in usage.items():
        block, kind = int(name.split()[1]), name.split()[2]
        linear = dict(
            zip(('qkv', 'proj', 'fc1', 'fc2'), linears(model.backbone.blocks[block]), strict=True)
        )[kind]
        assert len(layer['usage']) == len(linear.lora_a)
        assert layer['subnets'] == (1 if block == 1 else 2)
    assert len({len(layer['usage']) for layer in usage.values()}) > 1


def linears(block):
    return block.attn.qkv, block.attn.proj, block.fc1, block.fc2


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6).filter(lambda x: sum(x) > 0.1))
@repeatable
def test_entropy_is_between_one_expert_and_all(weights):
    shares = np.array(weights) / sum(weights)
    expected = -sum(p * log(p) for p in shares.tolist() if p > 0)
    assert entropy(shares) == pytest.approx(expected, abs=1e-12)
    assert -1e-12 <= entropy(shares) <= log(len(weights)) + 1e-12


def test_entropy_at_its_ends():
    assert entropy(np.array([0.0, 1.0])) == 0
    assert entropy(np.full(5, 0.2)) == pytest.approx(log(5))


def test_usage_at_the_start_over_the_whole_space():
    model = tiny_model()
    usage = gate_usage([layer_gates(model, subnet) for subnet in ALL])
    assert len(usage) == 12
    for name, layer in usage.items():
        block = int(name.split()[1])
        having = [subnet for subnet in ALL if subnet.depth > block]
        assert layer['subnets'] == len(having)
        share = np.bincount([groups(s)[block] for s in having], minlength=K) / len(having)
        np.testing.assert_allclose(layer['usage'], share * OWN + (1 - share) * OTHER, atol=1e-6)
        assert layer['largest'] == pytest.approx(OWN, abs=1e-6)
        mixed = -OWN * log(OWN) - (K - 1) * OTHER * log(OTHER)
        assert layer['entropy'] == pytest.approx(mixed, abs=1e-5)
        assert layer['usage_entropy'] == pytest.approx(log(K), abs=1e-6)  # all groups alike
        assert layer['dead'] == []


def test_experts_of_groups_that_never_come_are_dead():
    narrow = [subnet for subnet in ALL if subnet.embed_dim == 16]
    model = tiny_model()
    usage = gate_usage([layer_gates(model, subnet) for subnet in narrow])
    for layer in usage.values():
        assert layer['dead'] == [1, 3, 5, 7]  # those of width 24
    assert usage_summary(usage)['dead'] == 0.5


def test_usage_of_a_moved_router_is_that_of_loops():
    model = randomize(tiny_model(), std=1.0)
    usage = gate_usage([layer_gates(model, subnet) for subnet in ALL])
    rows = {}
    for subnet in ALL:
        for b, block in enumerate(model.router(subnet).detach().double().numpy()):
            rows.setdefault(b, []).append(block[2])
    for b, gates in rows.items():
        layer = usage[f'block {b} fc1']
        np.testing.assert_allclose(layer['usage'], np.mean(gates, axis=0), atol=1e-6)
        assert layer['largest'] == pytest.approx(np.mean([max(row) for row in gates]), abs=1e-6)
        unused = [k for k in range(K) if all(row[k] < 1 / 16 for row in gates)]
        assert layer['dead'] == unused
        own = [-sum(p * log(p) for p in row if p > 0) for row in gates]
        assert layer['entropy'] == pytest.approx(np.mean(own), abs=1e-5)
    largest = np.mean([layer['largest'] for layer in usage.values()])
    dead = sum(len(layer['dead']) for layer in usage.values()) / (12 * K)
    summary = usage_summary(usage)
    assert (summary['largest'], summary['dead']) == (pytest.approx(largest), dead)


@pytest.fixture
def experts(tmp_path):
    config = write_config(tmp_path / 'net.py', 'moLE')
    write_checkpoint(config)
    return config


def test_tool_shows_subnets_and_the_space(experts, digits_root, tmp_path):
    small = tmp_path / 'mine.json'
    small.write_text(str(SMALL).replace("'", '"'))
    start = write_config(tmp_path / 'start.py', 'moLE')
    bare = write_config(tmp_path / 'bare.py', 'supernet')
    write_checkpoint(bare).rename(tmp_path / 'start.pth')  # a router that starts group-wise
    options = ('--subnets', 'largest', small, '--draws', 40, '--beside', named('start', start))
    assert analyse('gates', experts, digits_root, *options) == 0
    found = result(experts, 'gates')
    assert list(found['subnets']) == ['largest', 'mine']
    gates = found['nets']['net']['gates']
    assert (len(gates['largest']), len(gates['mine'])) == (16, 8)
    for rows in gates.values():
        np.testing.assert_allclose([sum(row) for row in rows.values()], 1, atol=1e-4)
    own = e**3 / (e**3 + 11)
    assert found['nets']['start']['summary']['largest'] == pytest.approx(own, abs=1e-5)
    assert found['nets']['net']['summary']['largest'] != pytest.approx(own, abs=1e-2)
    for name in ('gates_net', 'usage_net', 'gates_start', 'usage_start'):
        assert (tmp_path / 'out' / f'{name}.png').stat().st_size > 10_000


@pytest.mark.parametrize(
    ('stage', 'body', 'options', 'message'),
    [
        ('supernet', '', (), 'has no experts'),
        (
            'moLE',
            'model = dict(backbone=dict(mole=dict(num_experts=1)), router=dict(_delete_=True, '
            "type='tas_lora.SingleExpertHead', space={{_base_.space}}))",
            (),
            'one expert in each layer',
        ),
        ('moLE', '', ('--draws', 0), '--draws must be a positive integer'),
        ('moLE', '', ('--count', 0), '--count must be a positive integer'),
    ],
)
def test_tool_refuses(digits_root, tmp_path, capsys, stage, body, options, message):
    config = write_config(tmp_path / 'net.py', stage, body)
    write_checkpoint(config)
    assert analyse('gates', config, digits_root, *options) == 2
    assert message in capsys.readouterr().err
