"""Operations and cell against plain sums over shifted maps."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nas_lora.cells.cell import SearchCell, initial_alpha
from nas_lora.cells.fold import cell_kernel
from nas_lora.cells.operations import OPERATIONS, build_operation
from tiny_encoder import (
    LINEAR,
    convolved,
    neighbours,
    plain_cell,
    plain_operation,
    separable,
)
from torch import nn

from tas_lora.errors import UserError

repeatable = settings(derandomize=True, deadline=None, max_examples=15)
maps = st.tuples(st.integers(1, 2), st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
CHANNELS = {1 / 3: 1, 2 / 3: 2, 1.0: 3, 0.5: 2}  # of rank 3


def made(shape, channels: int = 3) -> torch.Tensor:
    batch, height, width, seed = shape
    generator = torch.Generator().manual_seed(seed)
    size = (batch, channels, height, width)
    return torch.randn(size, generator=generator, dtype=torch.float64)


@repeatable
@given(shape=maps, ratio=st.sampled_from(sorted(CHANNELS)))
def test_the_cell_is_the_mixture_of_its_definition(shape, ratio):
    cell = SearchCell(3, ratio).double()
    nn.init.normal_(cell.alpha)
    x = made(shape)
    expected = plain_cell(cell, x, CHANNELS[ratio])
    assert torch.allclose(cell(x), expected, rtol=0, atol=1e-12)


@repeatable
@given(shape=maps, ratio=st.sampled_from(sorted(CHANNELS)))
def test_the_folded_kernel_is_the_cell(shape, ratio):
    cell = SearchCell(3, ratio, operations=LINEAR).double()
    nn.init.normal_(cell.alpha)
    kernel = cell_kernel(cell)
    assert kernel.shape == (3, 3, 9, 9)
    x = made(shape)
    expected = plain_cell(cell, x, CHANNELS[ratio])
    assert torch.allclose(convolved(x, kernel), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ('name', 'size'),
    [
        ('none', 1),
        ('skip_connect', 1),
        ('avg_pool_3x3', 3),
        ('sep_conv_3x3', 3),
        ('sep_conv_5x5', 5),
        ('dil_conv_3x3', 5),
        ('dil_conv_5x5', 9),
    ],
)
def test_an_operation_is_its_kernel(name, size):
    operation = build_operation(name, 2).double()
    x = made((2, 7, 4, 0), channels=2)
    kernel = operation.kernel(x)
    assert kernel.shape == (2, 2, size, size)
    assert kernel.dtype == torch.float64
    expected = plain_operation(name, operation, x)
    for found in (operation(x), convolved(x, kernel)):
        assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def test_ratio_one_is_the_plain_cell():
    torch.manual_seed(0)
    whole = SearchCell(3, 3 / 3).double()
    plain = SearchCell(3).double()
    plain.load_state_dict(whole.state_dict())
    x = made((2, 4, 4, 0))
    assert torch.equal(whole(x), plain(x))
    mixed = sum(c * op(x) for c, op in zip(plain.probabilities, plain.operations, strict=True))
    assert torch.allclose(whole(x), mixed, rtol=0, atol=1e-14)


def test_no_channel_passes_by_the_plain_cell_and_one_a_partial_one():
    x = made((1, 4, 4, 0))
    for ratio, by in ((1.0, []), (2 / 3, [2]), (1 / 3, [1, 2])):
        cell = SearchCell(3, ratio, operations=['none']).double()
        kept = [c for c in range(3) if torch.equal(cell(x)[:, c], x[:, c])]
        assert kept == by
        assert not cell(x)[:, [c for c in range(3) if c not in by]].any()


def normalised(x, eps=1e-5):
    mean = x.mean(dim=(0, 2, 3), keepdim=True)
    return (x - mean) / ((x - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True).add(eps).sqrt()


@pytest.mark.parametrize(('name', 'stages'), [('sep_conv_5x5', 2), ('dil_conv_3x3', 1)])
def test_darts_convolutions_have_relu_and_normalisation(name, stages):
    operation = build_operation(name, 2, 'darts').double()
    x = expected = made((2, 5, 4, 0), channels=2)
    convolutions = [m for m in operation.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 2 * stages
    for depthwise, pointwise in zip(convolutions[::2], convolutions[1::2], strict=True):
        weights = depthwise.weight, pointwise.weight
        dilation = 2 if name.startswith('dil') else 1
        expected = normalised(separable(expected.clamp(min=0), *weights, dilation))
    assert torch.allclose(operation(x), expected, rtol=0, atol=1e-10)


def test_darts_pooling_counts_no_padding_and_is_normalised():
    x = made((2, 5, 4, 0), channels=2)
    mean = sum(neighbours(x)) / sum(neighbours(torch.ones_like(x)))
    found = build_operation('avg_pool_3x3', 2, 'darts').double()(x)
    assert torch.allclose(found, normalised(mean), rtol=0, atol=1e-10)
    largest = torch.stack(neighbours(x, -torch.inf)).amax(0)
    found = build_operation('max_pool_3x3', 2, 'darts').double()(x)
    assert torch.allclose(found, normalised(largest), rtol=0, atol=1e-10)


def test_alpha_starts_small_and_is_trained():
    torch.manual_seed(0)
    alpha = initial_alpha(100_000)
    assert isinstance(alpha, nn.Parameter)
    assert abs(float(alpha.detach().mean())) < 2e-5
    assert float(alpha.detach().std()) == pytest.approx(1e-3, rel=0.02)
    assert sum(p.numel() for p in SearchCell(3, 2 / 3).parameters()) == 8 + 2 * (
        (9 + 2) + (25 + 2) + (9 + 2) + (25 + 2)
    )


def test_a_uniform_and_a_random_choice_are_not_trained():
    torch.manual_seed(0)
    uniform = SearchCell(3, alpha=initial_alpha(8, 'uniform'))
    assert torch.equal(uniform.probabilities, torch.full((8,), 1 / 8))
    drawn = set()
    for _ in range(60):
        cell = SearchCell(3, alpha=initial_alpha(8, 'random'))
        assert sorted(cell.probabilities.tolist()) == [0] * 7 + [1]
        [(name, operation, _)] = cell.present()
        x = torch.randn(1, 3, 4, 4)
        assert torch.allclose(cell(x), operation(x), rtol=0, atol=1e-6)
        drawn.add(name)
    assert drawn == set(OPERATIONS)
    for fixed in (uniform, cell):
        assert not fixed.is_searched
        assert 'alpha' in fixed.state_dict()
        assert all('alpha' not in name for name, _ in fixed.named_parameters())


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(preset='relu'), "preset must be 'linear' or 'darts', got 'relu'"),
        (dict(operations=['conv_7x7']), "operations must be some of ('none',"),
        (dict(operations=[]), "operations must be some of ('none',"),
        (dict(ratio=0), 'ratio 0 leaves no channel of rank 3 in the cell; give at least 0.333'),
        (dict(ratio=1.5), 'ratio must be a number from 0 to 1, got 1.5'),
        (dict(rank=0), 'rank must be a positive integer, got 0'),
    ],
)
def test_what_a_cell_refuses(options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        SearchCell(**dict(rank=3) | options)


def test_what_a_choice_refuses():
    with pytest.raises(UserError, match=r"choice must be one of 'searched' or 'uniform' or 'rand"):
        initial_alpha(8, 'best')
