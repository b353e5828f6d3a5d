"""Checkpoints: official files, ours, and what must be refused."""

import argparse
import os
import pickle
import re

import pytest
import torch
from conftest import ROOT, call_tool
from mmengine.logging import HistoryBuffer
from vectors import VECTORS, images, model_config, official_weights, subnet

from tas_lora import UserError, load_supernet
from tas_lora.engine import SupernetRunner
from tas_lora.models.safe_load import read_state_dict

ENTRY = VECTORS['gp_rel3_clipped']


@pytest.fixture
def official(tmp_path):
    """A file as the official trainer writes it."""
    path = tmp_path / 'checkpoint.pth'
    args = argparse.Namespace(lr=5e-4, gp=True, output_dir='out')
    optimizer = dict(state={0: dict(step=3, exp_avg=torch.zeros(2))}, param_groups=[dict(lr=1e-3)])
    torch.save(
        dict(model=official_weights(ENTRY), optimizer=optimizer, epoch=499, scaler={}, args=args),
        path,
    )
    return path


def with_experts(config: dict) -> dict:
    space = dict(embed_dim=[64, 128], depth=[1, 2], num_heads=[1, 2], mlp_ratio=[2.0, 3.0])
    config['model']['backbone']['mole'] = dict(num_experts=8, rank=2)
    config['model']['router'] = dict(type='tas_lora.LSTMRouterHead', space=space)
    return config


def logits(model) -> torch.Tensor:
    case = ENTRY['cases'][0]
    model.set_subnet(subnet(case['config']))
    with torch.no_grad():
        difference = (model(images(ENTRY)) - torch.tensor(case['logits'])).abs().max()
    assert difference <= 2e-5
    return model(images(ENTRY))


def test_converted_file_gives_the_recorded_logits(official, tmp_path, capsys):
    converted = tmp_path / 'converted.pth'
    assert call_tool('convert_autoformer.py', official, converted) == 0
    assert 'embed_dim 128, depth 2, heads 2' in capsys.readouterr().out
    torch.load(converted, weights_only=True)  # needs no allow-list any more
    logits(load_supernet(model_config(ENTRY), converted))


def test_bare_state_dict_is_read_too(tmp_path):
    torch.save(official_weights(ENTRY), tmp_path / 'bare.pth')
    logits(load_supernet(model_config(ENTRY), tmp_path / 'bare.pth'))


@pytest.mark.parametrize('prefix', ['module.', '_orig_mod.', 'module._orig_mod.'])
def test_weights_saved_from_ddp_or_a_compiled_model(tmp_path, prefix):
    """Both save the wrapped model under such a name."""
    wrapped = {f'{prefix}{name}': value for name, value in official_weights(ENTRY).items()}
    torch.save(dict(model=wrapped), tmp_path / 'wrapped.pth')
    model = load_supernet(model_config(ENTRY), tmp_path / 'wrapped.pth')
    logits(model)
    assert call_tool('convert_autoformer.py', tmp_path / 'wrapped.pth', tmp_path / 'c.pth') == 0
    ours = {f'{prefix}{name}': value for name, value in model.state_dict().items()}
    again = load_supernet(model_config(ENTRY))
    again.load_state_dict(ours)  # as a resumed run does
    logits(again)


def test_a_prefix_that_only_some_names_have_is_no_wrapper(tmp_path):
    weights = official_weights(ENTRY)
    name = next(iter(weights))
    weights[f'module.{name}'] = weights.pop(name)
    torch.save(weights, tmp_path / 'some.pth')
    assert set(read_state_dict(tmp_path / 'some.pth')) == set(weights)


def test_runner_loads_official_files(official, tmp_path):
    config = model_config(ENTRY)['model']
    runner = SupernetRunner(
        model=config,
        work_dir=str(tmp_path),
        experiment_name='official',
        default_scope='mmpretrain',
    )
    runner.load_checkpoint(str(official))
    logits(runner.model.eval())


def test_bare_supernet_fits_a_model_with_fresh_experts(official):
    bare = load_supernet(model_config(ENTRY), official)
    experts = load_supernet(with_experts(model_config(ENTRY)), official)
    smaller = dict(embed_dim=64, num_heads=[1], mlp_ratio=[2.0])
    for model in (bare, experts):
        model.set_subnet(smaller)
    assert torch.equal(bare(images(ENTRY)), experts(images(ENTRY)))


def test_experts_need_a_config_with_experts(tmp_path):
    model = load_supernet(with_experts(model_config(ENTRY)))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'experts.pth')
    with pytest.raises(UserError, match='the checkpoint holds experts, the config none'):
        load_supernet(model_config(ENTRY), tmp_path / 'experts.pth')


def test_official_sizes_are_told_apart(official):
    for name, field in (('t', 'embed_dim 128 in the checkpoint, 256 in the config'),):
        with pytest.raises(UserError, match=field) as caught:
            load_supernet(str(ROOT / f'configs/autoformer_{name}_supernet.py'), official)
        assert 'num_heads 2 x 2 in the checkpoint, 4 x 14 in the config' in str(caught.value)
        assert '\n' not in str(caught.value)
        assert len(str(caught.value)) < 700


def test_files_that_are_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match='does not exist'):
        read_state_dict(tmp_path / 'missing.pth')
    (tmp_path / 'text.pth').write_text('hello')
    with pytest.raises(UserError, match='not a readable checkpoint'):
        read_state_dict(tmp_path / 'text.pth')
    torch.save(dict(epoch=3), tmp_path / 'empty.pth')
    with pytest.raises(UserError, match='holds no weights'):
        read_state_dict(tmp_path / 'empty.pth')
    torch.save(dict(state_dict={'fc.weight': torch.zeros(1)}), tmp_path / 'other.pth')
    with pytest.raises(UserError, match='not weights of an ElasticViT'):
        load_supernet(model_config(ENTRY), tmp_path / 'other.pth')


def test_truncated_file(official, tmp_path):
    torn = tmp_path / 'torn.pth'
    torn.write_bytes(official.read_bytes()[:5000])
    with pytest.raises(UserError, match='not a readable checkpoint'):
        read_state_dict(torn)


class RunsCommand:
    def __init__(self, how, argument):
        self.how, self.argument = how, argument

    def __reduce__(self):
        return self.how, self.argument


@pytest.mark.parametrize('attack', ['system', 'getattr'])
def test_files_that_run_code_are_refused(tmp_path, attack):
    canary = tmp_path / 'canary'
    if attack == 'system':
        payload = RunsCommand(os.system, (f'touch {canary}',))
    else:
        payload = RunsCommand(getattr, (HistoryBuffer, '__init__'))
    torch.save(dict(state_dict={'x': torch.zeros(1)}, extra=payload), tmp_path / 'evil.pth')
    with pytest.raises(UserError, match='such files can run code'):
        read_state_dict(tmp_path / 'evil.pth')
    assert not canary.exists()


def test_namespace_stays_forbidden_outside_the_one_load(official):
    read_state_dict(official)
    with pytest.raises(pickle.UnpicklingError, match=re.escape('argparse.Namespace')):
        torch.load(official, weights_only=True)
