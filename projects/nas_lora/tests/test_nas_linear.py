"""NASLoRALinear: its start, its inputs, its parts."""

import re

import pytest
import torch
from nas_lora.cells.linear import NASLoRALinear
from tiny_encoder import plain_cell, wake
from torch import nn

from tas_lora.errors import UserError

X = (2, 4, 5, 12)


def layer(**options) -> NASLoRALinear:
    torch.manual_seed(0)
    return NASLoRALinear(nn.Linear(12, 18), **options).double()


def inputs(*shape: int) -> torch.Tensor:
    return torch.randn(shape or X, generator=torch.Generator().manual_seed(1)).double()


def gradients(adapted: NASLoRALinear) -> dict[str, float]:
    """Largest gradient of each kind of parameter, after a backward of a random loss."""
    adapted.zero_grad()
    y = adapted(inputs())
    (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    largest = dict.fromkeys(('alpha', 'operations', 'down', 'up'), 0.0)
    for name, value in adapted.named_parameters():
        for kind in largest:
            if kind in name:
                largest[kind] = max(largest[kind], float(value.grad.abs().max()))
    return largest


@pytest.mark.parametrize('preset', ['linear', 'darts'])
@pytest.mark.parametrize('ratio', [2 / 3, 1.0])
def test_at_the_start_the_update_and_all_gradients_but_those_of_up_are_zero(preset, ratio):
    adapted = layer(preset=preset, ratio=ratio)
    assert torch.equal(adapted(inputs()), adapted.base(inputs()))
    found = gradients(adapted)
    assert found.pop('up') > 0
    assert set(found.values()) == {0.0}
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if 'up' in name:
                value -= 0.1 * value.grad
    assert all(value > 0 for value in gradients(adapted).values())


def test_only_the_adapter_is_trained():
    adapted = layer(ratio=2 / 3)
    frozen = {name for name, p in adapted.named_parameters() if not p.requires_grad}
    assert frozen == {'base.weight', 'base.bias'}
    cell = 8 + 2 * ((9 + 2) + (25 + 2) + (9 + 2) + (25 + 2))
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trained == 3 * (cell + 3 * 12 + 6 * 3)


@torch.no_grad()
def test_the_update_is_up_cell_down():
    adapted = layer(ratio=2 / 3, scale=0.5)
    wake(adapted)
    x = inputs()
    expected = adapted.base(x)
    for i, part in enumerate('qkv'):
        branch = adapted.branches[part]
        down = torch.einsum('ri,bhwi->brhw', branch.down.weight, x)
        update = torch.einsum('or,brhw->bhwo', branch.up.weight, plain_cell(branch.cell, down, 2))
        expected[..., 6 * i : 6 * i + 6] += 0.5 * update
    assert torch.allclose(adapted(x), expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_parts_that_are_not_adapted_stay():
    adapted = layer(adapted=['v', 'q'])
    wake(adapted)
    change = (adapted(inputs()) - adapted.base(inputs())).abs().amax(dim=(0, 1, 2))
    assert set(adapted.branches) == {'q', 'v'}
    assert change[:6].all()
    assert not change[6:12].any()
    assert change[12:].all()


@torch.no_grad()
def test_a_fused_layer_is_three_separate_ones():
    fused = layer()
    wake(fused)
    x = inputs()
    for i, part in enumerate('qkv'):
        rows = slice(6 * i, 6 * i + 6)
        separate = NASLoRALinear(nn.Linear(12, 6), parts=('out',)).double()
        separate.base.weight.copy_(fused.base.weight[rows])
        separate.base.bias.copy_(fused.base.bias[rows])
        separate.branches['out'].load_state_dict(fused.branches[part].state_dict())
        assert torch.allclose(separate(x), fused(x)[..., rows], rtol=0, atol=1e-12)


@pytest.mark.parametrize(('grid', 'side'), [((4, 5), (4, 5)), (4, (4, 4)), (None, (3, 3))])
@torch.no_grad()
def test_tokens_in_a_row_are_a_map(grid, side):
    adapted = layer(grid=grid)
    wake(adapted)
    x = inputs(2, *side, 12)
    assert torch.equal(adapted(x.flatten(1, 2)), adapted(x).flatten(1, 2))


@torch.no_grad()
def test_class_tokens_are_kept_aside():
    adapted = layer(extra_tokens=2)
    wake(adapted)
    x = inputs(2, 11, 12)
    y = adapted(x)
    assert torch.allclose(y[:, 2:], adapted(x[:, 2:].reshape(2, 3, 3, 12)).flatten(1, 2))
    for i in range(2):
        assert torch.allclose(y[:, i], adapted(x[:, i].reshape(2, 1, 1, 12))[:, 0, 0])
    moved = x.clone()
    moved[:, 0] += 1
    assert torch.equal(adapted(moved)[:, 1:], y[:, 1:])
    assert not torch.allclose(adapted(moved)[:, 0], y[:, 0])


def test_alpha_is_shared_by_the_parts_if_told_so():
    adapted = layer(share_alpha=True)
    assert sum('alpha' in name for name, _ in adapted.named_parameters()) == 1
    assert len({id(branch.cell.alpha) for branch in adapted.branches.values()}) == 1
    assert sum('alpha' in name for name, _ in layer().named_parameters()) == 3


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(parts=('q', 'k', 'v', 'g')), "parts: 18 outputs are not 4 equal parts ('q', 'k'"),
        (dict(parts=('q', 'q')), "parts must be different names, such as ('q', 'k', 'v') or"),
        (dict(parts='qkv'), "or ('v',), got 'qkv'"),
        (dict(parts=3), "or ('v',), got 3"),
        (dict(parts=('q', 1, 2)), "or ('v',), got ('q', 1, 2)"),
        (dict(operations=3), "operations must be some of ('none',"),
        (dict(adapted=['o']), "adapted must be some of ('q', 'k', 'v'), each once, got ['o']"),
        (dict(rank=13), 'rank must be a positive integer, got 13; at most 12'),
        (dict(scale=0), 'scale must be a positive number, got 0'),
        (dict(grid='x'), "grid must be a positive integer, got 'x'"),
        (dict(grid=(1, 2, 3)), 'grid must be a side or (height, width), got (1, 2, 3)'),
        (dict(extra_tokens=-1), 'extra_tokens must be an integer from 0 up, got -1'),
        (dict(alpha_std=-1), 'alpha_std must be a number from 0 to 1, got -1'),
    ],
)
def test_what_the_layer_refuses(options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        layer(**options)


def test_it_refuses_other_modules_and_other_numbers_of_tokens():
    with pytest.raises(UserError, match='targets: NASLoRALinear adapts an nn.Linear, got a Conv2d'):
        NASLoRALinear(nn.Conv2d(3, 3, 1))
    message = 'grid: 10 tokens after 1 extra ones do not form a map of 3 x 3; set grid='
    with pytest.raises(UserError, match=re.escape(message)):
        layer(extra_tokens=1)(inputs(2, 11, 12))
