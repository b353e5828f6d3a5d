"""Experts: merged equals unmerged, no experts equal zero experts, and what trains."""

import copy
from functools import partial

import pytest
import torch
from tiny import MOLE, SPACE, images, randomize, tiny_config, tiny_model

from tas_lora import SearchSpace, Subnet, load_supernet
from tas_lora.models.layers import (
    MoLELinear,
    expert_parameters,
    merge_each,
    merge_together,
    mole_linear,
    slice_weight,
)

SHALLOW = Subnet(16, [1, 2], [2.0, 1.0])
SUBNETS = [SPACE.smallest(), SHALLOW, SPACE.largest()]
K, R = 3, 2


def mole_layer(parts: int) -> MoLELinear:
    torch.manual_seed(parts)
    return randomize(MoLELinear(7, 6, parts, num_experts=K, rank=R)).double()


def reference(x, layer, gates, out, width):
    """W x + b + sum_k p_k U_k D_k x / r, part after part, expert after expert."""
    weight = layer.weight.unflatten(0, (layer.parts, -1)) if layer.parts == 1 else layer.weight
    up = layer.lora_b.view(K, layer.parts, 6, R)
    outputs = []
    for part in range(layer.parts):
        y = x @ weight[part, :out, :width].T + layer.bias[part * out : (part + 1) * out]
        for k in range(K):
            expert = up[k, part, :out] @ layer.lora_a[k, :, :width]
            y = y + gates[k] * (x @ expert.T) / R
        outputs.append(y)
    return torch.cat(outputs, dim=-1)


def merged(x, layer, gates, out, width):
    layer.merge(gates, out, width)
    return layer(x, out)


def merged_together(x, layer, gates, out, width):
    merge_together([(layer, out, width)], gates[None])
    return layer(x, out)


def unmerged(x, layer, gates, out, width):
    weight = slice_weight(layer.weight, out, width)
    down = layer.lora_a[..., :width]
    up = layer.lora_b.view(K, layer.parts, 6, R)[:, :, :out].flatten(1, 2)
    return mole_linear(x, weight, layer.bias[: layer.parts * out], down, up, gates)


def assert_same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('parts', [1, 3])
@pytest.mark.parametrize(('out', 'width'), [(6, 7), (6, 4), (2, 7), (3, 5), (1, 1)])
@pytest.mark.parametrize('compute', [merged, merged_together, unmerged])
def test_values_and_gradients_are_those_of_the_formula(compute, parts, out, width):
    layer = mole_layer(parts)
    x = torch.randn(4, 2, width).double().requires_grad_()
    gates = torch.randn(K).double().softmax(dim=0).requires_grad_()
    weigh = torch.randn(4, 2, parts * out).double()

    expected = reference(x, layer, gates, out, width)
    got = compute(x, layer, gates, out, width)
    assert_same(got, expected)

    inputs = [x, gates, layer.lora_a, layer.lora_b, layer.weight, layer.bias]
    gradients = (torch.autograd.grad((y * weigh).sum(), inputs) for y in (got, expected))
    for a, b in zip(*gradients, strict=True):
        assert b.any()
        assert_same(a, b)


@pytest.mark.parametrize('parts', [1, 3])
def test_gradients_of_experts_are_zero_outside_the_slice(parts):
    layer = mole_layer(parts)
    merged(torch.randn(4, 5).double(), layer, torch.ones(K).double(), 3, 5).sum().backward()
    assert not layer.lora_a.grad[..., 5:].any()
    assert not layer.lora_b.grad[..., 3:, :].any()


@pytest.mark.parametrize('parts', [1, 3])
@pytest.mark.parametrize(
    'widths', [[(6, 4), (2, 4), (6, 4), (3, 4)], [(5, 7), (5, 2), (5, 4), (5, 2)], [(6, 7)] * 4]
)
def test_layers_merged_together_are_those_merged_one_by_one(widths, parts):
    """And the unmerged ones, of which some are alike; their order is kept."""
    layers = [mole_layer(parts) for _ in widths]
    for layer in layers:
        randomize(layer)
    gates = torch.randn(len(layers), K).double().softmax(dim=1).requires_grad_()
    inputs = [torch.randn(3, width).double() for _, width in widths]
    wanted = [gates] + [t for layer in layers for t in (layer.lora_a, layer.lora_b, layer.weight)]

    def run(merge):
        sliced = [(layer, *width) for layer, width in zip(layers, widths, strict=True)]
        if merge is not None:
            merge(sliced, gates)
        parts_of = zip(inputs, layers, gates, widths, strict=True)
        if merge is None:
            outputs = [unmerged(x, layer, gate, *width) for x, layer, gate, width in parts_of]
        else:
            outputs = [layer(x, out) for x, layer, _, (out, _) in parts_of]
        loss = sum((i + 1) * y.square().sum() for i, y in enumerate(outputs))
        return outputs + list(torch.autograd.grad(loss, wanted))

    expected = run(None)
    for merge in (merge_each, merge_together):
        for found, value in zip(run(merge), expected, strict=True):
            assert value.any()
            assert_same(found, value)


def test_experts_start_as_lora_does():
    torch.manual_seed(0)
    layer = MoLELinear(100, 50, num_experts=4, rank=8)
    assert not layer.lora_b.any()
    assert layer.lora_a.abs().max() <= 0.1
    assert layer.lora_a.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.05)


# In a supernet


def logits(model, subnet):
    model.set_subnet(subnet)
    with torch.no_grad():
        return model(images())


@pytest.mark.parametrize('subnet', SUBNETS, ids=['smallest', 'between', 'largest'])
def test_zero_experts_are_bit_equal_to_none(subnet):
    bare, model = randomize(tiny_model(mole=False)), tiny_model()
    model.load_state_dict(bare.state_dict())
    assert torch.equal(logits(model, subnet), logits(bare, subnet))


def wide_config(mole: bool) -> dict:
    """A supernet as wide as small AutoFormers."""
    space = SearchSpace((64, 96, 128), (2, 3), (1, 2), (3.5, 4.0))
    config = tiny_config(mole, Subnet(160, [3] * 3, [4.0] * 3))
    config['model']['backbone']['head_dim'] = 64
    if mole:
        config['model']['backbone']['mole'] = dict(num_experts=12, rank=8)
        config['model']['router']['space'] = space
    return config


def test_zero_experts_are_bit_equal_at_autoformer_widths():
    torch.manual_seed(0)
    bare, model = load_supernet(wide_config(mole=False)), load_supernet(wide_config(mole=True))
    model.load_state_dict(bare.state_dict())
    for width in (64, 96, 128):
        subnet = Subnet(width, [1, 2], [4.0, 3.5])
        assert torch.equal(logits(model, subnet), logits(bare, subnet))


@pytest.fixture
def model():
    """A supernet whose experts and router matter."""
    model = tiny_model()
    for parameter in [*expert_parameters(model), model.router.head_weight]:
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def test_experts_change_the_output(model):
    bare = tiny_model(mole=False)
    assert not torch.equal(logits(model, SHALLOW), logits(bare, SHALLOW))


def test_supernet_is_the_formula_in_each_layer(model):
    model.set_subnet(SHALLOW)
    gates = model.router(SHALLOW).detach()
    expected = tiny_model(mole=False, arch=SPACE.largest())
    weights = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for b in range(SHALLOW.depth):
            for j, name in enumerate(('attn.qkv', 'attn.proj', 'fc1', 'fc2')):
                layer = model.backbone.blocks[b].get_submodule(name)
                for k in range(MOLE['num_experts']):
                    expert = layer.lora_b[k] @ layer.lora_a[k] / MOLE['rank']
                    weights[f'backbone.blocks.{b}.{name}.weight'] += gates[b, j, k] * expert
    expected.load_state_dict({k: weights[k] for k in expected.state_dict()})
    torch.testing.assert_close(logits(model, SHALLOW), logits(expected, SHALLOW))


def test_merging_before_or_for_the_call_is_the_same(model):
    model.set_subnet(SHALLOW)
    once = model(images())
    assert not model.is_merged
    model.merge_experts()
    assert torch.equal(model(images()), once)
    assert model.is_merged


def test_merging_twice_is_merging_once(model):
    model.set_subnet(SHALLOW)
    model.merge_experts()
    once = [layer.merged for layer in model.backbone.mole_layers()]
    model.merge_experts()
    twice = [layer.merged for layer in model.backbone.mole_layers()]
    for a, b in zip(once, twice, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def test_only_active_layers_are_merged(model):
    model.set_subnet(SHALLOW)
    model.merge_experts()
    for i, block in enumerate(model.backbone.blocks):
        layers = (block.attn.qkv, block.attn.proj, block.fc1, block.fc2)
        assert all((layer.merged is not None) == (i < SHALLOW.depth) for layer in layers)


def test_merged_weights_are_no_state(model):
    def state():
        tensors = [*model.named_parameters(), *model.named_buffers(), *model.state_dict().items()]
        return [(name, tensor.data_ptr()) for name, tensor in tensors]

    before = state()
    model.merge_experts()
    assert state() == before


def test_unmerged_model_can_be_copied(model):
    model.merge_experts()
    model.unmerge_experts()
    assert not model.is_merged
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin, SHALLOW), logits(model, SHALLOW))


def test_choosing_a_subnet_drops_the_merge(model):
    model.merge_experts()
    model.set_subnet(model.subnet)
    assert all(layer.merged is None for layer in model.backbone.mole_layers())


def test_merge_without_experts_does_nothing():
    model = tiny_model(mole=False)
    model.merge_experts()
    assert not model.is_merged


def backward(model):
    model(images()).square().sum().backward()


def grads(model) -> dict:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def is_added(name: str) -> bool:
    """Whether a parameter is one of TAS-LoRA's, not of the supernet."""
    return 'lora_' in name or name.startswith('router.')


def test_gradients_reach_all_experts_and_the_router(model):
    backward(model)
    trained = {name: grad for name, grad in grads(model).items() if is_added(name)}
    assert len([name for name in trained if 'lora_' in name]) == 2 * 4 * 3
    assert all(grad is not None and grad.any() for grad in trained.values())


def test_frozen_router_gets_no_gradient(model):
    model.router.requires_grad_(False)
    backward(model)
    assert all(parameter.grad is None for parameter in model.router.parameters())
    assert all(parameter.grad.any() for parameter in expert_parameters(model))


def test_merge_without_gradients_keeps_no_graph(model):
    with torch.no_grad():
        model.merge_experts()
    assert not any(layer.merged.requires_grad for layer in model.backbone.mole_layers())


def test_experts_beyond_the_depth_get_no_gradient(model):
    model.set_subnet(SHALLOW)
    backward(model)
    beyond = {name: g for name, g in grads(model).items() if name.startswith('backbone.blocks.2.')}
    assert beyond
    assert all(grad is None for grad in beyond.values())


def test_supernet_is_frozen_and_experts_and_router_train(model):
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == is_added(name), name
    backward(model)
    assert all(grad is None for name, grad in grads(model).items() if not is_added(name))


def test_supernet_trains_without_experts_or_when_asked():
    for model in (tiny_model(mole=False), tiny_model(freeze_supernet=False)):
        assert all(parameter.requires_grad for parameter in model.parameters())


def test_loading_weights_drops_the_merge():
    model = tiny_model()
    before = model(images())
    other = {name: value + 0.1 for name, value in model.state_dict().items()}
    model.merge_experts()
    model.load_state_dict(other)
    assert not model.is_merged
    assert not torch.equal(model(images()), before)


def trained_step(merge, subnet, amp=False, with_cp=False, shared=0, **kwargs):
    """Logits, and gradients by name, of a step whose layers are merged by ``merge``."""
    config = tiny_config(**kwargs)
    mole = dict(MOLE, num_experts=MOLE['num_experts'] + shared)
    config['model']['backbone'].update(with_cp=with_cp, mole=mole)
    config['model']['router'].update(shared=shared)
    torch.manual_seed(0)
    model = randomize(load_supernet(config), std=0.3)
    model.backbone.merge_experts = partial(model.backbone.merge_experts, merge=merge)
    model.set_subnet(subnet)
    model.merge_experts()
    with torch.autocast('cpu', torch.bfloat16, enabled=amp):
        y = model(images())
    y.float().square().sum().backward()
    return y, {name: grad for name, grad in grads(model).items() if grad is not None}


@pytest.mark.parametrize('subnet', SUBNETS[:2], ids=['smallest', 'between'])
@pytest.mark.parametrize(
    'options',
    [
        dict(),
        dict(with_cp=True),
        dict(freeze_supernet=False),
        dict(keep_parent=True),
        dict(shared=1),
        dict(amp=True),
    ],
    ids=str,
)
def test_a_step_with_layers_merged_together(subnet, options):
    """The order of sums differs, which in bfloat16 may change the last bit of 8."""
    tolerance = 0.02 if options.get('amp') else 1e-4
    (one, expected), (other, found) = (
        trained_step(merge, subnet, **options) for merge in (merge_each, merge_together)
    )
    assert (one - other).norm() <= tolerance * one.norm()
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        assert (found[name] - grad).norm() <= tolerance * grad.norm(), name


def test_merge_inside_autocast_is_float32():
    model = tiny_model()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        model.merge_experts()
    assert model.backbone.blocks[0].fc1.merged.dtype == torch.float32
