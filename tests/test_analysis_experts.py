"""Similarity of experts: the formulas written out, invariances, slices, and the tool."""

import numpy as np
import pytest
import torch
from analysed import analyse, named, result, write_checkpoint, write_config
from hypothesis import given
from hypothesis import strategies as st
from tiny import MOLE, SPACE, every, images, randomize, repeatable, tiny_config, tiny_model

from tas_lora import UserError, load_supernet
from tas_lora.analysis.experts import (
    expert_layers,
    expert_similarity,
    factor_similarity,
    output_similarity,
    require_experts,
)

SUBNETS = [SPACE.smallest(), every(SPACE)[7], SPACE.largest()]
SINGLE = dict(type='tas_lora.SingleExpertHead', space=tiny_config()['model']['router']['space'])


def random_experts(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    experts, rank, wide, high = rng.integers(1, 5, 4)
    shapes = (experts, rank, wide), (experts, high, rank)
    return tuple(torch.from_numpy(rng.normal(size=shape)) for shape in shapes)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))


def pairwise(experts: np.ndarray) -> list[list[float]]:
    return [[cosine(a, b) for b in experts] for a in experts]


@given(st.integers(0, 10**6))
@repeatable
def test_factors_and_products_are_compared_as_vectors(seed):
    a, b = random_experts(seed)
    found = factor_similarity(a, b)
    np.testing.assert_allclose(found['a'], pairwise(a.numpy()), atol=1e-10)
    np.testing.assert_allclose(found['b'], pairwise(b.numpy()), atol=1e-10)
    products = np.stack([up @ down for up, down in zip(b.numpy(), a.numpy(), strict=True)])
    np.testing.assert_allclose(found['product'], pairwise(products), atol=1e-10)


@given(st.integers(0, 10**6))
@repeatable
def test_outputs_are_compared_token_by_token(seed):
    a, b = random_experts(seed)
    x = torch.from_numpy(np.random.default_rng(seed + 1).normal(size=(5, a.shape[2])))
    outputs = np.stack(
        [x.numpy() @ (up @ down).T for up, down in zip(b.numpy(), a.numpy(), strict=True)]
    )
    expected = np.mean([pairwise(outputs[:, token]) for token in range(5)], axis=0)
    np.testing.assert_allclose(output_similarity(x, a, b), expected, atol=1e-8)


def test_one_expert_written_in_another_basis_is_the_same():
    rng = np.random.default_rng(0)
    turn = torch.from_numpy(np.linalg.qr(rng.normal(size=(3, 3)))[0])
    down, up = (torch.from_numpy(rng.normal(size=shape)) for shape in ((3, 7), (6, 3)))
    a, b = torch.stack([down, turn @ down, down]), torch.stack([up, up @ turn.T, -2 * up])
    found = factor_similarity(a, b)
    expected = [[1, 1, -1], [1, 1, -1], [-1, -1, 1]]
    np.testing.assert_allclose(found['product'], expected, atol=1e-12)
    outputs = output_similarity(torch.from_numpy(rng.normal(size=(4, 7))), a, b)
    np.testing.assert_allclose(outputs, expected, atol=1e-12)
    assert abs(found['a'][0, 1]) < 0.9
    assert abs(found['b'][0, 1]) < 0.9


def test_experts_that_are_zero_have_no_similarity():
    found = factor_similarity(torch.ones(2, 1, 3), torch.tensor([[[0.0]], [[1.0]]]))
    assert np.isnan(found['product'][0]).all()
    assert found['product'][1, 1] == pytest.approx(1)
    assert found['a'][0, 1] == pytest.approx(1)


@pytest.mark.parametrize('subnet', SUBNETS)
def test_factors_are_those_that_a_subnet_merges(subnet):
    model = randomize(tiny_model(), std=0.3)
    layers = list(expert_layers(model, subnet))
    kinds = ('qkv', 'proj', 'fc1', 'fc2')
    assert [x.name for x in layers] == [
        f'block {b} {k}' for b in range(subnet.depth) for k in kinds
    ]
    model.set_subnet(subnet)
    with torch.no_grad():
        gates = model.router(subnet)
        model.merge_experts()
    for layer in layers:
        merged, base = layer.layer.merged, layer.layer.weight.detach()
        base = base[..., : layer.out_features, : layer.in_features].reshape(merged.shape)
        down, up = layer.factors
        added = torch.einsum('k,kor,kri->oi', gates[layer.place], up, down) / MOLE['rank']
        torch.testing.assert_close(merged - base, added, atol=1e-5, rtol=1e-4)


def test_outputs_are_taken_on_what_the_layer_is_given():
    model, subnet = randomize(tiny_model(), std=0.3), SUBNETS[1]
    batches = [dict(inputs=list(images(4)[:2])), dict(inputs=list(images(4)[2:]))]
    found = expert_similarity(model, subnet, batches)
    seen, norm = [], model.backbone.blocks[0].attn_norm
    norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model.set_subnet(subnet)
    with torch.no_grad():
        model(images(4), mode='tensor')
    x = seen[0].flatten(0, 1)
    first = next(expert_layers(model, subnet))
    outputs = np.stack(
        [(x @ d.T @ u.T).double().numpy() for d, u in zip(*first.factors, strict=True)]
    )
    expected = np.mean([pairwise(outputs[:, token]) for token in range(len(x))], axis=0)
    np.testing.assert_allclose(found['block 0 qkv']['output'], expected, atol=1e-4)
    assert all(set(layer) == {'a', 'b', 'product', 'output'} for layer in found.values())
    assert not any(layer._forward_pre_hooks for layer in model.backbone.mole_layers())


def test_outputs_are_left_out_without_images():
    found = expert_similarity(tiny_model(), SUBNETS[0])
    assert {tuple(layer) for layer in found.values()} == {('a', 'b', 'product')}


def test_models_without_several_experts_are_refused():
    with pytest.raises(UserError, match='net has no experts'):
        require_experts(tiny_model(mole=False), 'net')
    config = tiny_config()
    config['model']['backbone']['mole'] = dict(num_experts=1, rank=2)
    config['model']['router'] = SINGLE
    with pytest.raises(UserError, match='one expert in each layer'):
        require_experts(load_supernet(config), 'net')
    require_experts(tiny_model(), 'net')


@pytest.fixture
def experts(tmp_path):
    config = write_config(tmp_path / 'net.py', 'moLE')
    write_checkpoint(config)
    return config


def test_tool_compares_checkpoints(experts, digits_root, tmp_path):
    other = write_config(tmp_path / 'random.py', 'moLE', "model = dict(router=dict(init='random'))")
    write_checkpoint(other, seed=1)
    options = ('--images', 4, '--beside', named('random', other))
    assert analyse('expert_similarity', experts, digits_root, *options) == 0
    found, model = (
        result(experts, 'expert_similarity'),
        load_supernet(experts, experts.with_suffix('.pth')),
    )
    layer = next(expert_layers(model, model.router.space.largest()))
    expected = pairwise(torch.stack([u @ d for d, u in zip(*layer.factors, strict=True)]).numpy())
    np.testing.assert_allclose(
        found['matrices']['net']['block 0 qkv']['product'], expected, atol=1e-5
    )
    lines = found['mean_by_layer']
    assert list(lines) == ['a', 'b', 'product', 'output']
    off = [value for i, row in enumerate(expected) for j, value in enumerate(row) if i != j]
    assert lines['product']['net']['block 0 qkv'] == pytest.approx(np.mean(off), abs=1e-5)
    assert len(lines['output']['random']) == 16
    assert (tmp_path / 'out' / 'expert_similarity.png').stat().st_size > 10_000


def test_tool_says_that_experts_are_zero(experts, digits_root, capsys):
    bare = write_config(experts.parent / 'bare.py', 'supernet')
    write_checkpoint(bare)
    bare.with_suffix('.pth').rename(experts.with_suffix('.pth'))  # experts start fresh
    assert analyse('expert_similarity', experts, digits_root, '--images', 0) == 0
    lines = result(experts, 'expert_similarity')['mean_by_layer']
    assert set(lines['product']['net'].values()) == {None}
    assert None not in lines['a']['net'].values()
    assert 'experts are zero' in capsys.readouterr().out


def test_tool_refuses_a_bare_supernet(digits_root, tmp_path, capsys):
    bare = write_config(tmp_path / 'bare.py', 'supernet')
    write_checkpoint(bare)
    assert analyse('expert_similarity', bare, digits_root) == 2
    assert 'error: bare has no experts' in capsys.readouterr().err
