"""The three levels: fold and exact merge change nothing, least squares says what it lost."""

import re

import numpy as np
import pytest
import torch
from nas_lora.cells.fold import FoldedCell, fold, fold_cell
from nas_lora.cells.linear import NASLoRALinear
from nas_lora.merging.merge import MergeReport, merge_exact, merge_least_squares
from nas_lora.vits.adapt import adapt
from tiny_encoder import LINEAR, convolved, images, tiny_encoder, wake
from torch import nn

from tas_lora.errors import UserError

PER_TOKEN = ('none', 'skip_connect')


def adapted(window_size: int = 4, **options):
    torch.manual_seed(0)
    encoder = tiny_encoder(window_size)
    adapt(encoder, dict(type='nas_lora.NASLoRALinear', **options))
    wake(encoder.double())
    return encoder


@pytest.mark.parametrize('window_size', [4, 3])  # 3 does not divide 8: windows are padded
@pytest.mark.parametrize('ratio', [2 / 3, 1.0])
@torch.no_grad()
def test_folding_changes_nothing(window_size, ratio):
    encoder = adapted(window_size, ratio=ratio, operations=LINEAR)
    x = images()
    before = encoder(x)[0]
    plain = tiny_encoder(window_size)
    plain.load_state_dict(
        {k.replace('.base', ''): v for k, v in encoder.state_dict().items() if '.branches' not in k}
    )
    assert (before - plain(x)[0]).abs().max() > 0.1
    names = fold(encoder)
    assert names == [f'layers.{i}.attn.qkv.{part}' for i in range(4) for part in 'qkv']
    assert torch.allclose(encoder(x)[0], before, rtol=0, atol=1e-10)
    assert not any('alpha' in name for name in encoder.state_dict())
    assert fold(encoder) == names  # again, to no effect
    assert torch.allclose(encoder(x)[0], before, rtol=0, atol=1e-10)


@torch.no_grad()
def test_a_folded_window_sees_its_own_padding_only():
    """Windows are maps of their own: the convolution pads each with zeros."""
    layer = adapted(operations=LINEAR).layers[0].attn.qkv
    fold(nn.Sequential(layer))
    windows = torch.randn(5, 4, 4, 64, dtype=torch.float64)
    branch = layer.branches['k']
    down = (windows @ branch.down.weight.T).permute(0, 3, 1, 2)
    mixed = convolved(down, branch.cell.weight).permute(0, 2, 3, 1)
    expected = layer.base(windows)[..., 64:128] + mixed @ branch.up.weight.T
    assert torch.allclose(layer(windows)[..., 64:128], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(), 'layers.0.attn.qkv.q: fold: max_pool_3x3 is in the way, as a maximum is not lin'),
        (
            dict(preset='darts', operations=['none', 'sep_conv_3x3']),
            'layers.0.attn.qkv.q: fold: sep_conv_3x3 is in the way, as it has ReLU and batch norm',
        ),
        (
            dict(preset='darts', operations=['skip_connect', 'avg_pool_3x3']),
            'fold: avg_pool_3x3 is in the way, as padding is not counted at the border, and batch',
        ),
    ],
)
def test_fold_names_what_is_in_the_way_and_changes_nothing(options, message):
    encoder = adapted(**options)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    with pytest.raises(UserError, match=re.escape(message)):
        fold(encoder)
    after = encoder.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@torch.no_grad()
def test_an_operation_that_was_not_chosen_is_not_in_the_way():
    layer = NASLoRALinear(nn.Linear(12, 12), parts=['out'], choice='random').double()
    cell = layer.branches['out'].cell
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    for name in cell.names:
        cell.alpha.fill_(-torch.inf)
        cell.alpha[cell.names.index(name)] = 0
        if name == 'max_pool_3x3':
            with pytest.raises(UserError, match='fold: max_pool_3x3 is in the way'):
                fold_cell(cell)
        else:
            assert torch.allclose(fold_cell(cell)(x), cell(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize('ratio', [2 / 3, 1.0])
@pytest.mark.parametrize('is_folded', [False, True])
@torch.no_grad()
def test_an_exact_merge_changes_nothing_and_leaves_a_plain_encoder(ratio, is_folded):
    encoder = adapted(3, ratio=ratio, operations=PER_TOKEN, scale=0.7)
    x = images()
    before = encoder(x)[0]
    if is_folded:
        fold(encoder)
    assert merge_exact(encoder) == [f'layers.{i}.attn.qkv' for i in range(4)]
    assert torch.allclose(encoder(x)[0], before, rtol=0, atol=1e-10)
    plain = tiny_encoder(3)
    plain.load_state_dict(encoder.state_dict())
    assert [type(m) for m in encoder.modules()] == [type(m) for m in plain.modules()]
    assert torch.equal(plain(x)[0], encoder(x)[0])


@torch.no_grad()
def test_an_exact_merge_holds_for_class_tokens_and_parts_left_out():
    layer = NASLoRALinear(
        nn.Linear(12, 18), operations=PER_TOKEN, adapted=['v'], extra_tokens=1, ratio=2 / 3
    ).double()
    model = nn.Sequential(layer)
    wake(model)
    x = torch.randn(2, 10, 12, dtype=torch.float64)
    before, untouched = model(x), layer.base.weight[:12].clone()
    merge_exact(model)
    assert torch.allclose(model(x), before, rtol=0, atol=1e-12)
    assert torch.equal(model[0].weight[:12], untouched)


@pytest.mark.parametrize('name', [*LINEAR[1:2], *LINEAR[3:], 'max_pool_3x3'])
def test_an_exact_merge_names_what_is_in_the_way_and_changes_nothing(name):
    encoder = adapted(operations=[*PER_TOKEN, name])
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    message = f"layers.0.attn.qkv.q: merge(exact): {name} is in the way, as it reads a token's"
    with pytest.raises(UserError, match=re.escape(message)):
        merge_exact(encoder)
    if name != 'max_pool_3x3':
        fold(encoder)
        with pytest.raises(UserError, match=re.escape(f'{name} (folded) is in the way')):
            merge_exact(encoder)
    else:
        assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


def tokens_and_updates(encoder, batches):
    """What the first layer is given, and what its adapter adds, as rows."""
    layer = encoder.layers[0].attn.qkv
    seen = []
    handle = layer.register_forward_hook(
        lambda _, inputs, y: seen.append((inputs[0], y - layer.base(inputs[0])))
    )
    for batch in batches:
        encoder(batch)
    handle.remove()
    return [torch.cat([row.flatten(0, 2) for row in rows]).numpy() for rows in zip(*seen)]  # noqa: B905


@pytest.mark.parametrize('bias', [True, False])
@torch.no_grad()
def test_least_squares_is_the_fit_of_numpy(bias):
    encoder = adapted(ratio=2 / 3, scale=0.7)
    batches = [images(3), images(2)]
    layer = encoder.layers[0].attn.qkv
    if not bias:
        layer.base.bias = None
    x, update = tokens_and_updates(encoder, batches)
    columns = np.hstack([x, np.ones((len(x), 1))]) if bias else x
    fit, *_ = np.linalg.lstsq(columns, update, rcond=1e-6)
    left = ((update - columns @ fit) ** 2).sum()
    expected = 1 - left / ((update - update.mean(0)) ** 2).sum()
    wanted = layer.base(torch.from_numpy(x)).numpy() + columns @ fit
    report = merge_least_squares(encoder, batches)
    assert report.r2['layers.0.attn.qkv'] == pytest.approx(expected, abs=1e-6)
    assert 0.01 < expected < 0.99
    assert len(report.r2) == 4
    merged = encoder.layers[0].attn.qkv
    assert type(merged) is nn.Linear
    assert np.allclose(merged(torch.from_numpy(x)).numpy(), wanted, rtol=0, atol=1e-6)


@torch.no_grad()
def test_least_squares_loses_nothing_where_nothing_is_spatial():
    encoder = adapted(operations=PER_TOKEN)
    x = images()
    before = encoder(x)[0]
    report = merge_least_squares(encoder, [images(4), images(4)])
    assert list(report.r2.values()) == pytest.approx([1] * 4, abs=1e-6)
    assert torch.allclose(encoder(x)[0], before, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_report_has_the_metric_before_and_after():
    encoder = adapted()
    x = images()
    encoder.train()
    start = float(encoder(x)[0].sum())
    report = merge_least_squares(
        encoder, [dict(x=images(4))], lambda: float(encoder(x)[0].sum()), lambda b: encoder(b['x'])
    )
    assert encoder.training
    assert report.before == start
    assert report.after == float(encoder(x)[0].sum()) != start
    lines = str(report).splitlines()
    assert lines[0] == f'layers.0.attn.qkv: R^2 {report.r2["layers.0.attn.qkv"]:.4f}'
    change = report.after - report.before
    assert lines[4] == f'metric {report.before:.4f} -> {report.after:.4f} ({change:+.4f})'
    assert str(MergeReport(dict(a=0.5))) == 'a: R^2 0.5000'


def test_what_least_squares_refuses():
    encoder = adapted()
    message = 'layers.0.attn.qkv: merge(least_squares) needs more tokens than the layer is wide (64'
    with pytest.raises(UserError, match=re.escape(message)):
        merge_least_squares(encoder, [images(1)])
    with pytest.raises(UserError, match=r'got 0; give more batches'):
        merge_least_squares(encoder, [])
    assert isinstance(encoder.layers[0].attn.qkv, NASLoRALinear)
    assert not isinstance(encoder.layers[0].attn.qkv.branches['q'].cell, FoldedCell)


@pytest.mark.parametrize(
    'level', [fold, merge_exact, lambda model: merge_least_squares(model, [images()])]
)
def test_a_model_without_adapters_is_refused(level):
    with pytest.raises(UserError, match='the ViTSAM has no NASLoRALinear; adapt it first'):
        level(tiny_encoder())


@pytest.mark.parametrize(('width', 'percent'), [(768, 0.56), (1280, 0.33)])
def test_what_a_folded_cell_costs_of_a_fused_qkv(width, percent):
    """Every weight is used once for a token, so that weights are multiplications."""
    layer = NASLoRALinear(nn.Linear(width, 3 * width), parts=['qkv'], operations=LINEAR)
    fold(nn.Sequential(layer))
    added = sum(p.numel() for p in layer.branches.parameters())
    assert 100 * added / layer.base.weight.numel() == pytest.approx(percent, abs=0.005)
