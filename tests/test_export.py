"""The exported network against the supernet it was cut from."""

import ast
import json

import pytest
import torch
from conftest import ROOT, call_tool
from safetensors.torch import load_file, save
from tiny import SPACE, tiny_model
from vectors import VECTORS, images, model_config, official_weights, subnet

from tas_lora import Subnet, UserError, count_params, export_subnet, load_supernet
from tas_lora.models.plain_vit import load_plain_vit


def trained_like(model):
    """Give the experts weights other than zero."""
    generator = torch.Generator().manual_seed(0)
    for layer in model.backbone.mole_layers():
        layer.lora_b.data.normal_(std=0.5, generator=generator)
    model.router.head_weight.data.normal_(std=0.5, generator=generator)
    return model


@pytest.mark.parametrize('name', VECTORS)
def test_exports_reproduce_recorded_official_logits(name, tmp_path):
    entry = VECTORS[name]
    torch.save(official_weights(entry), tmp_path / 'official.pth')
    model = load_supernet(model_config(entry), tmp_path / 'official.pth')
    for case in entry['cases']:
        plain, _ = load_plain_vit(export_subnet(model, subnet(case['config']), tmp_path / 'out'))
        with torch.no_grad():
            difference = (plain(images(entry)) - torch.tensor(case['logits'])).abs().max()
        assert difference <= 2e-5


def test_experts_are_merged_into_the_export(tmp_path):
    model = trained_like(tiny_model())
    for choice in ('smallest', 'largest'):
        chosen = getattr(SPACE, choice)()
        plain, description = load_plain_vit(export_subnet(model, chosen, tmp_path / choice))
        model.set_subnet(chosen)
        batch = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = model(batch, mode='tensor')
            model.backbone.merge_experts(chosen, torch.zeros(chosen.depth, 4, 8))
            bare = model(batch, mode='tensor')
            model.unmerge_experts()
            assert (plain(batch) - expected).abs().max() <= 1e-4
        assert (bare - expected).abs().max() > 1e-2  # the experts do matter here
        assert Subnet.from_dict(description['subnet']) == chosen


def test_export_holds_the_subnet_and_nothing_else(tmp_path):
    model = tiny_model()
    chosen = Subnet(16, (1, 2), (2.0, 1.0))
    folder = export_subnet(model, chosen, tmp_path / 'out')
    weights = load_file(folder / 'weights.safetensors')
    stored = sum(w.numel() for w in weights.values())
    assert stored == count_params(chosen, **model.image_spec)
    assert json.loads((folder / 'architecture.json').read_text())['params'] == stored


def test_plain_network_is_torch_alone():
    source = (ROOT / 'tas_lora/models/plain_vit.py').read_text()
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            modules.add(node.module.split('.')[0])
    assert modules == {'hashlib', 'json', 'pathlib', 'torch', 'safetensors'}


def test_tool_notices_a_difference(digits_config, tmp_path, capsys, monkeypatch):
    model = load_supernet(digits_config('moLE'))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'experts.pth')
    best = tmp_path / 'subnet.json'
    best.write_text(json.dumps(dict(subnet=model.router.space.smallest().to_dict())))
    arguments = (ROOT / 'configs/digits_moLE.py', tmp_path / 'experts.pth', '--subnet', best)
    assert call_tool('export.py', *arguments, '--out', tmp_path / 'out') == 0
    assert 'within 1e-04' in capsys.readouterr().out

    def save_wrong(tensors):
        return save(tensors | {'head.bias': tensors['head.bias'] + 1})

    monkeypatch.setattr('tas_lora.models.export.save', save_wrong)
    assert call_tool('export.py', *arguments, '--out', tmp_path / 'out') == 1
    assert 'ABOVE 1e-04' in capsys.readouterr().out


def test_a_flipped_bit_of_the_weights_is_named(tmp_path):
    out = export_subnet(tiny_model(), SPACE.smallest(), tmp_path)
    load_plain_vit(out)
    content = bytearray((out / 'weights.safetensors').read_bytes())
    content[-5] ^= 1
    (out / 'weights.safetensors').write_bytes(content)
    with pytest.raises(ValueError, match='is damaged, or not of architecture.json'):
        load_plain_vit(out)


def test_subnets_that_cannot_be_exported(tmp_path):
    model = tiny_model()
    with pytest.raises(UserError, match='embed_dim is 32, the supernet has 24'):
        export_subnet(model, Subnet(32, (1,), (1.0,)), tmp_path / 'out')
    with pytest.raises(UserError, match='belongs to no group of experts'):
        export_subnet(model, Subnet(20, (1,), (1.0,)), tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
