"""From a pretrained network of timm to exported subnets, by the tools, as a user goes."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import call_tool
from mmengine.config import Config
from PIL import Image

from tas_lora import Subnet, apis
from tas_lora.export import FORMATS
from tas_lora.models.pretrained import convert

DATA = """
_base_ = ['network.py', 'RUNTIME']
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
shared = dict(batch_size=6, num_workers=0, persistent_workers=False)
dataset = dict(type='CustomDataset', data_root='ROOT', pipeline=pipeline)
train_dataloader = dict(
    **shared, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(dataset, data_prefix='train'),
)
val_dataloader = dict(
    **shared, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(dataset, data_prefix='val'),
)
test_dataloader = dict(
    **shared, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(dataset, data_prefix='test'),
)
val_evaluator = [dict(type='tas_lora.CrossEntropy'), dict(type='Accuracy')]
test_evaluator = dict(type='Accuracy')
load_from = 'ROOT/network.pth'
"""
EXPERTS = """
_base_ = ['ordered/ordered.py', 'SCHEDULE']
space = _base_.space
groups = len(space.num_heads) * len(space.mlp_ratio) * len(space.embed_dim)
model = dict(
    backbone=dict(mole=dict(num_experts=1 + groups, rank=2)),
    router=dict(type='tas_lora.LSTMRouterHead', space=space, shared=1),
    keep_parent=True,
)
train_cfg = dict(space=space, max_epochs=2, val_interval=2)
val_cfg = dict(space=space)
test_cfg = dict(space=space)
param_scheduler = None
"""
SEARCH = """
_base_ = 'experts.py'
val_cfg = dict(
    _delete_=True, type='tas_lora.EvolutionarySearchLoop', space={{_base_.space}},
    evolution=dict(population=4, generations=2, parents=2, mutations=2, crossovers=2, seed=0),
    constraints=dict(flops=(None, LIMIT)),
)
train_dataloader = train_cfg = optim_wrapper = param_scheduler = None
"""
CONFIGS = Path(__file__).parents[1] / 'configs/_base_'


def original() -> torch.nn.Module:
    """A small DINOv2 with registers, of which no part is left at zero or one."""
    torch.manual_seed(0)
    sizes = dict(img_size=28, embed_dim=32, depth=4, num_heads=4, num_classes=3)
    vit = timm.create_model('vit_small_patch14_reg4_dinov2', **sizes).eval()
    for value in vit.parameters():
        value.data.add_(0.1 * torch.randn_like(value))
    return vit


@pytest.fixture
def folder(tmp_path):
    """Pictures, and the network as a supernet's config and weights."""
    rng = np.random.default_rng(0)
    for split, name, i in product(('train', 'val', 'test'), 'abc', range(4)):
        path = tmp_path / split / name / f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (28, 28, 3), np.uint8)).save(path)
    model, config, _ = convert(original())
    config['data_preprocessor'] = dict(mean=[127.0] * 3, std=[60.0] * 3, to_rgb=True)
    Config(dict(model=config)).dump(tmp_path / 'network.py')
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'network.pth')
    data = DATA.replace('ROOT', str(tmp_path)).replace('RUNTIME', f'{CONFIGS}/default_runtime.py')
    (tmp_path / 'data.py').write_text(data)
    return tmp_path


@pytest.mark.full
def test_the_tools_lead_from_a_network_of_timm_to_all_formats(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    one = "val_cfg = dict(type='ValLoop'); test_cfg = dict(type='TestLoop')"
    (folder / 'original.py').write_text(f"_base_ = 'data.py'\n{one}\n")
    assert call_tool('test.py', 'original.py', 'network.pth') == 0
    options = ('--multiple', 8, '--batches', 2, '--device', 'cpu')
    assert call_tool('order.py', 'data.py', '--out', 'ordered', *options) == 0
    schedule = str(CONFIGS / 'schedules/distill_experts.py')
    (folder / 'experts.py').write_text(EXPERTS.replace('SCHEDULE', schedule))
    assert call_tool('train.py', 'experts.py', '--work-dir', 'work') == 0

    cfg = apis.load_config('experts.py')
    model = apis.load_supernet(cfg, 'work/epoch_2.pth')
    images = torch.randn(5, 3, 28, 28)
    model.set_subnet(model.backbone.arch)
    ordered = apis.load_supernet('ordered/ordered.py', 'ordered/ordered.pth')
    with torch.no_grad():
        assert torch.equal(model(images), ordered(images))  # kept to the last bit
        expected = original()(images)
    assert (model(images) - expected).abs().max() < 1e-5 * expected.abs().max()

    text = SEARCH.replace('LIMIT', str(0.8 * 4 * 32**2 * 12 * 9))
    (folder / 'search.py').write_text(text)
    searched = call_tool('search.py', 'search.py', 'work/epoch_2.pth', '--work-dir', 'found')
    assert searched == 0
    found = Subnet.coerce(folder / 'found/best_subnet.json')
    assert found != model.backbone.arch
    subnet = ('--subnet', 'found/best_subnet.json')
    assert call_tool('test.py', 'experts.py', 'work/epoch_2.pth', *subnet) == 0
    similarity = ('analysis/feature_similarity.py', 'experts.py', 'work/epoch_2.pth')
    assert call_tool(*similarity, '--out', 'similarity', '--data', 'val', '--images', 12) == 0
    capsys.readouterr()
    formats = ('--out', 'exported', '--formats', 'all', '--int8')
    assert call_tool('export.py', 'experts.py', 'work/epoch_2.pth', *subnet, *formats) == 0
    printed = capsys.readouterr().out
    assert all(f'Exported {form.name} to exported' in printed for form in FORMATS)
    network = json.loads((folder / 'exported/architecture.json').read_text())['network']
    assert network['num_prefix_tokens'] == 5
