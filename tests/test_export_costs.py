"""What exported networks cost, counted and timed."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT, call_tool
from hypothesis import given
from hypothesis import strategies as st
from tiny import CLASSES, IMAGE, SEARCHED, SPACE, repeatable, spaces, tiny_model

from tas_lora import UserError, count_flops, count_params, export_subnet
from tas_lora.costs import timing
from tas_lora.costs.exported import check_costs, convention, counted_flops, flops_reasons, sizes
from tas_lora.costs.latency import measure, timm_vit
from tas_lora.export import Source
from tas_lora.models.plain_vit import PlainViT

AUTOFORMER = dict(img_size=224, patch_size=16, in_channels=3, head_dim=64)
AUTOFORMER |= dict(max_relative_position=14, num_classes=1000)


def network_of(subnet, spec: dict, pooling: str = 'avg_featmap') -> dict:
    widths = dict(num_heads=list(subnet.num_heads), hidden_dims=list(subnet.hidden_dims))
    return dict(embed_dim=subnet.embed_dim, **widths, **spec, pooling=pooling)


@pytest.fixture
def exported(tmp_path):
    return export_subnet(tiny_model(), SPACE.sample(np.random.default_rng(0)), tmp_path / 'export')


@repeatable
@given(spaces(), st.integers(0, 99), st.integers(1, 5), st.sampled_from([2, 4]))
def test_reasons_explain_all_of_the_difference(space, seed, reach, patch):

    subnet = space.sample(np.random.default_rng(seed))
    spec = dict(IMAGE, patch_size=patch, max_relative_position=reach, num_classes=CLASSES)
    network = network_of(subnet, spec)
    net = PlainViT(**network)
    reasons = flops_reasons(net, network)
    assert counted_flops(net, network) == pytest.approx(
        count_flops(subnet, **spec) - sum(reasons.values()), abs=1e-6
    )


def test_the_published_subnet_by_hand():
    """AutoFormer-T's: 197 tokens, heads of 64 widened by 32, 55 offsets and a zero."""
    network = network_of(SEARCHED['t'], AUTOFORMER)
    with torch.device('meta'):
        net = PlainViT(**network)
    tokens, heads = 197, 40
    assert sum(network['num_heads']) == heads
    linears = tokens * 192 * (4 * 64 * heads + 2 * sum(network['hidden_dims']))
    attention = 2 * tokens * tokens * heads * (64 + 32) + 2 * tokens * heads * 64 * 55
    expected = 196 * 3 * 256 * 192 + linears + attention + 192 * 1000
    assert counted_flops(net, network) == expected


def test_sizes_of_a_file(exported):
    source = Source.read(exported)
    found = sizes(source)
    file = (exported / 'weights.safetensors').stat().st_size
    assert found['ours'] == found['module'] == source.description['params']
    assert found['file_bytes'] == file
    assert found['file_vs_params'] == pytest.approx(file / found['ours'] / 4)
    assert file == found['header_bytes'] + 4 * found['ours']
    assert found['data_vs_params'] == 1


@repeatable
@given(spaces(), st.integers(0, 99), st.integers(1, 5), st.sampled_from([2, 4]))
def test_costs_follow_from_the_network_alone(space, seed, reach, patch):
    """Its MLP widths stand for the ratios they were made from."""
    subnet = space.sample(np.random.default_rng(seed))
    spec = dict(IMAGE, patch_size=patch, max_relative_position=reach, num_classes=CLASSES)
    found = convention(network_of(subnet, spec))
    assert found == dict(params=count_params(subnet, **spec), flops=count_flops(subnet, **spec))


@pytest.mark.parametrize('name', ['params', 'flops'])
@pytest.mark.parametrize('value', ['many', None, 0, 1, True, [1], float('nan'), 'missing'])
def test_costs_that_were_edited(exported, name, value):
    source = Source.read(exported)
    check_costs(source)
    edited = source.description | {name: value}
    if value == 'missing':
        del edited[name]
    with pytest.raises(UserError, match=rf'architecture.json: {name} is .*; the file was edited'):
        check_costs(replace(source, description=edited))


def test_the_tool_refuses_an_edited_file(exported, capsys):
    path = exported / 'architecture.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(params='many')))
    assert call_tool('export_costs.py', exported, '--runtimes') == 2
    assert 'architecture.json' in capsys.readouterr().err


@pytest.mark.parametrize('pooling', ['avg_featmap', 'cls_token'])
def test_the_plain_vit_has_the_same_widths(pooling):
    """All parameters but the tables of relative positions, four of 30 rows in each block."""
    subnet = SEARCHED['t']
    found = timm_vit(network_of(subnet, AUTOFORMER, pooling))
    tables = 13 * 4 * 30 * 64
    expected = count_params(subnet, **AUTOFORMER) - tables
    assert sum(parameter.numel() for parameter in found.parameters()) == expected


def test_networks_are_timed_in_turn_and_compared_by_rounds(monkeypatch):
    times, nets = iter(range(1, 100)), dict(one=torch.nn.Identity(), other=torch.nn.Identity())
    monkeypatch.setattr(timing, 'stopwatch', lambda job, device: next(times))
    found = measure(nets, torch.zeros(1), ['torch'], rounds=2)
    # Warm-up 1, 2; then other 3, one 4; then one 5, other 6.
    assert found['torch']['one']['median'] == 4500
    assert found['torch']['other']['median'] == 4500
    assert found['torch']['versus']['other']['median'] == pytest.approx((4 / 3 + 5 / 6) / 2)


@pytest.mark.full
def test_the_tool_prints_and_writes_its_figures(exported, tmp_path, capsys):
    out = tmp_path / 'costs.json'
    options = ('--runtimes', 'torch', 'onnx', '--rounds', 15, '--beside', exported, '--out', out)
    assert call_tool('export_costs.py', exported, *options) == 0
    text, figures = capsys.readouterr().out, json.loads(out.read_text())
    assert "torch's counter, on the module" in text
    assert f'{figures["flops"]["counted"]:,.0f}' in text
    for runtime in ('torch', 'onnx'):
        row = figures['latency_ms'][runtime]
        assert set(row) == {'export', "timm's ViT", 'beside', 'versus'}
        assert 0.2 < row['versus']['beside']['median'] < 5  # the same network twice


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (('--rounds', 0), '--rounds must be a positive integer'),
        (('--batch-size', -1), '--batch-size must be a positive integer'),
        (('--out', ROOT), 'cannot be written'),
    ],
)
def test_mistakes_on_the_command_line(exported, capsys, options, message):
    assert call_tool('export_costs.py', exported, *options) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_is_no_export(tmp_path, capsys):
    assert call_tool('export_costs.py', tmp_path) == 2
    assert f'{tmp_path} is no export: ' in capsys.readouterr().err
