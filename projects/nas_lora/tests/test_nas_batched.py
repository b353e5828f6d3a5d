"""The cells of a layer at once against their definition, one operation after the other."""

import copy
from functools import partial

import pytest
import torch
from nas_lora.cells.linear import NASLoRALinear
from nas_lora.cells.operations import OPERATIONS
from nas_lora.study.costs import launches
from tiny_encoder import LINEAR, wake
from torch import nn
from torch.utils.checkpoint import checkpoint


def layer(**options) -> NASLoRALinear:
    torch.manual_seed(0)
    adapted = NASLoRALinear(nn.Linear(12, 18), **options).double()
    wake(adapted)
    return adapted


def values_and_gradients(adapted, function, x):
    adapted = copy.deepcopy(adapted)  # batch normalisation remembers what it saw
    x = x.clone().requires_grad_()
    y = function(adapted, x)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).double())
    found = {name: p.grad for name, p in adapted.named_parameters() if p.requires_grad}
    return found | dict(y=y.detach(), x=x.grad) | dict(adapted.named_buffers())


KINDS = 'depthwise', 'pointwise'
CASES = [
    dict(),
    dict(ratio=2 / 3, scale=0.7),
    dict(ratio=1 / 3, extra_tokens=2),
    dict(extra_tokens=1),
    dict(share_alpha=True, extra_tokens=1),
    dict(adapted=['v', 'q'], ratio=2 / 3),
    dict(parts=['out']),
    dict(choice='uniform', extra_tokens=1),
    dict(choice='random', ratio=2 / 3),
    dict(operations=LINEAR),
    dict(operations=LINEAR[::-1], extra_tokens=1),
    dict(operations=['none', 'skip_connect', 'sep_conv_3x3']),
    dict(operations=['max_pool_3x3', 'none']),
    *[dict(operations=[name], extra_tokens=1) for name in OPERATIONS],
    dict(preset='darts', extra_tokens=1),
    dict(preset='darts', ratio=2 / 3, choice='uniform'),
    dict(preset='darts', operations=['none', 'skip_connect']),
]


@pytest.mark.parametrize('options', CASES, ids=str)
@pytest.mark.parametrize('shape', [(2, 4, 5), (3, 1, 1), (2, 9, 10)], ids=str)
def test_a_layer_is_its_definition(options, shape):
    adapted = layer(**options)
    extra = options.get('extra_tokens', 0)
    x = torch.randn(*shape, 12, generator=torch.Generator().manual_seed(1)).double()
    if extra:
        adapted.token_maps.grid = shape[1:]
        first = torch.randn(shape[0], extra, 12, generator=torch.Generator().manual_seed(3))
        x = torch.cat([first.double(), x.flatten(1, 2)], dim=1)
    found = values_and_gradients(adapted, NASLoRALinear.forward, x)
    expected = values_and_gradients(adapted, NASLoRALinear.by_definition, x)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if value is None:  # no gradient: an operation that is not there
            assert found[name] is None, name
        else:
            assert torch.allclose(found[name], value, rtol=0, atol=1e-11), name


def two_layers() -> tuple[nn.Sequential, nn.Sequential]:
    """A model, and a copy that computes by definition."""
    model = nn.Sequential(layer(), nn.GELU(), nn.Linear(18, 12).double(), layer(ratio=2 / 3))
    definition = copy.deepcopy(model)
    for adapted in (definition[0], definition[3]):
        adapted.forward = adapted.by_definition
    return model, definition


def test_a_model_is_its_definition_in_two_forwards_before_a_backward_and_after_steps():
    results, (first, second) = [], torch.randn(2, 2, 5, 6, 12).double()
    for model in two_layers():
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer, seen = torch.optim.SGD(trained, lr=0.1), []
        for _ in range(2):
            (model(first).square().mean() + model(second).square().mean()).backward()
            seen += [p.grad.clone() for p in trained]
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                seen.append(model(first))
        results.append(seen)
    half = len(results[0]) // 2
    assert not torch.allclose(results[0][half - 1], results[0][-1])  # the weights changed
    for found, expected in zip(*results, strict=True):
        assert torch.allclose(found, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize('use_reentrant', [False, True])
def test_gradients_are_the_same_with_gradient_checkpointing(use_reentrant):
    model, definition = two_layers()
    x = torch.randn(2, 5, 6, 12).double().requires_grad_()
    checkpoint(model[:2], x, use_reentrant=use_reentrant).square().mean().backward()
    definition[:2](x).square().mean().backward()
    for found, expected in zip(model.parameters(), definition.parameters(), strict=True):
        assert (found.grad is None) == (expected.grad is None)
        if found.grad is not None:
            assert torch.allclose(found.grad, expected.grad, rtol=0, atol=1e-11)


def test_up_projections_lie_row_by_row():
    """Gradients of products with the transpose take MKL three times as long."""
    for options in (dict(), dict(parts=['out']), dict(adapted=['v', 'q'])):
        assert layer(**options)._up().is_contiguous()


def test_a_layer_starts_few_kernels():
    """The definition starts more with each operation of each part."""
    x = torch.randn(2, 5, 5, 12).double()
    for parts, now, plain in ((['out'], 19, 38), (['q', 'k', 'v'], 25, 102)):
        adapted = layer(parts=parts)
        assert launches(partial(adapted, x)) == now
        assert launches(partial(adapted.by_definition, x)) == plain
    extra = layer(extra_tokens=1)
    x = torch.randn(2, 26, 12).double()
    assert launches(partial(extra, x)) == 25 + 2  # a convolution and a sum of their own


def test_checkpoints_hold_what_they_always_held():
    layers = 'down.weight', 'up.weight', 'cell.alpha'
    convolutions = [f'cell.operations.{i}.{kind}.weight' for i in range(4, 8) for kind in KINDS]
    names = {f'branches.{part}.{name}' for part in 'qkv' for name in (*layers, *convolutions)}
    assert layer().state_dict().keys() == names | {'base.weight', 'base.bias'}
