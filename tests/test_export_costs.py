"""Costs of exported networks, counted and timed."""

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
from tas_lora.costs import deployed
from tas_lora.costs.exported import RUNTIMES, check_costs, convention, counted_flops, measure
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


def test_the_published_subnet_by_hand():
    """AutoFormer-T's: 197 tokens, heads of 64 widened by 32, 55 offsets and a zero."""
    network = network_of(SEARCHED['t'], AUTOFORMER)
    tokens, heads = 197, 40
    assert sum(network['num_heads']) == heads
    linears = tokens * 192 * (4 * 64 * heads + 2 * sum(network['hidden_dims']))
    attention = 2 * tokens * tokens * heads * (64 + 32) + 2 * tokens * heads * 64 * 55
    expected = 196 * 3 * 256 * 192 + linears + attention + 192 * 1000
    assert counted_flops(network) == expected


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


def test_parameters_are_those_of_the_module(exported):
    source = Source.read(exported)
    counted = sum(parameter.numel() for parameter in source.net.parameters())
    assert convention(source.network)['params'] == counted


@pytest.mark.parametrize('runtime', RUNTIMES)
def test_each_runtime_is_timed_on_the_exported_network(exported, monkeypatch, runtime):
    source, rounds, logits = Source.read(exported), [], []

    def stopwatch(forward, device):
        logits.append(forward())
        rounds.append(float(len(rounds) + 1))
        return rounds[-1]

    monkeypatch.setattr(deployed, 'stopwatch', stopwatch)
    found = measure(source, [runtime], 'cpu', batch_size=3, rounds=5)[runtime]
    assert (found['latency'], found['latency_spread']) == (3000, 2000)  # of 1 to 5 seconds
    expected = source.net(source.random_images(3))
    for each in logits:
        got = torch.from_numpy(each[0]) if runtime == 'onnx' else each
        assert (got - expected).abs().max() < 1e-4
    assert ('memory' in found) == (runtime == 'torch')


def test_a_batch_that_does_not_fit_is_one_line(exported, monkeypatch):
    def fail(net, images):
        raise torch.OutOfMemoryError('no memory left')

    source = Source.read(exported)
    monkeypatch.setattr(PlainViT, 'forward', fail)
    with pytest.raises(UserError, match='torch cannot run a batch of 3 on cpu: .*no memory left'):
        measure(source, ['torch'], 'cpu', batch_size=3, rounds=1)


@pytest.mark.full
def test_the_tool_prints_and_writes_its_figures(exported, tmp_path, capsys):
    out = tmp_path / 'costs.json'
    options = ('--runtimes', 'torch', 'onnx', '--rounds', 5, '--out', out)
    assert call_tool('export_costs.py', exported, *options) == 0
    text, figures = capsys.readouterr().out, json.loads(out.read_text())
    assert "torch's counter" in text
    assert f'{figures["torch_flops"]:,.0f}' in text
    assert figures['file_bytes'] == (exported / 'weights.safetensors').stat().st_size
    assert set(figures['measured']) == {'torch', 'onnx'}
    assert all(row['latency'] > 0 for row in figures['measured'].values())
    # Weights and images, at least.
    assert figures['measured']['torch']['memory'] * 2**20 > 4 * figures['params']


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
    assert f'{tmp_path} is not an export: ' in capsys.readouterr().err
