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


def layer(**options) -> NASLoRALinear:
    torch.manual_seed(0)
    adapted = NASLoRALinear(nn.Linear(12, 18), **options).double()
    wake(adapted)
    return adapted


def by_definition(adapted: NASLoRALinear, x: torch.Tensor) -> torch.Tensor:
    """W0 x, and part by part Wd sum_i softmax(alpha)_i O_i(We x), by the modules themselves."""
    y, width = adapted.base(x), adapted.base.out_features // len(adapted.parts)
    updates = []
    for m in adapted.maps(x):
        parts = [
            adapted.branches[part](m)
            if part in adapted.branches
            else m.new_zeros(*m.shape[:-1], width)
            for part in adapted.parts
        ]
        updates.append(torch.cat(parts, dim=-1).reshape(len(x), -1, y.shape[-1]))
    return y + adapted.scale * torch.cat(updates, dim=1).reshape(y.shape)


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
    expected = values_and_gradients(adapted, by_definition, x)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if value is None:  # no gradient: an operation that is not there
            assert found[name] is None, name
        else:
            assert torch.allclose(found[name], value, rtol=0, atol=1e-11), name


def test_a_layer_starts_few_kernels():
    """The definition starts more with each operation of each part."""
    x = torch.randn(2, 5, 5, 12).double()
    for parts, now, plain in ((['out'], 19, 40), (['q', 'k', 'v'], 31, 110)):
        adapted = layer(parts=parts)
        assert launches(partial(adapted, x)) == now
        assert launches(partial(by_definition, adapted, x)) == plain
    extra = layer(extra_tokens=1)
    x = torch.randn(2, 26, 12).double()
    assert launches(partial(extra, x)) == 31 + 2  # a convolution and a sum of their own


def test_checkpoints_hold_what_they_always_held():
    layers = 'down.weight', 'up.weight', 'cell.alpha'
    convolutions = [f'cell.operations.{i}.{kind}.weight' for i in range(4, 8) for kind in KINDS]
    names = {f'branches.{part}.{name}' for part in 'qkv' for name in (*layers, *convolutions)}
    assert layer().state_dict().keys() == names | {'base.weight', 'base.bias'}
