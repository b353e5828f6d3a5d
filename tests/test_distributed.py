"""Two gloo processes against one process with the same global batch."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from mmengine.runner import Runner

from tas_lora.models.checkpoint import read_state_dict


def five_steps(cfg, batch_size: int):
    """Make ``cfg`` five iterations of a global batch of 8, in order."""
    cfg.train_dataloader.batch_size = batch_size
    cfg.train_dataloader.sampler.shuffle = False
    cfg.train_cfg.max_epochs = 1
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if 'router' in cfg.model:
        cfg.custom_hooks = [dict(type='tas_lora.MoLEHook')]
    return cfg


@pytest.mark.parametrize('stage', ['supernet', 'moLE'])
def test_two_processes_equal_one(digits_config, tmp_path, stage):
    alone = five_steps(digits_config(stage, images=40), batch_size=8)
    runner = Runner.from_cfg(alone)
    depths = {runner_loop_depth(runner, i) for i in range(5)}
    assert len(depths) > 1  # blocks are skipped in some iterations
    start = {name: value.clone() for name, value in runner.model.state_dict().items()}
    torch.save(dict(state_dict=start), tmp_path / 'start.pth')
    alone.load_from = str(tmp_path / 'start.pth')
    runner._load_from = alone.load_from
    runner.train()

    pair = five_steps(digits_config(stage, images=40), batch_size=4)
    pair.load_from, pair.work_dir = alone.load_from, str(tmp_path / 'pair')
    pair.dump(tmp_path / 'pair.py')
    environment = os.environ | dict(PYTHON=sys.executable, PORT='29517', CUDA_VISIBLE_DEVICES='')
    script = ROOT / 'tools' / 'dist_train.sh'
    command = [script, tmp_path / 'pair.py', '2']
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    expected = read_state_dict(f'{alone.work_dir}/epoch_1.pth')
    found = read_state_dict(f'{pair.work_dir}/epoch_1.pth')
    assert any(not torch.equal(expected[name], start[name]) for name in expected)
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= 1e-5, name


def runner_loop_depth(runner, iteration: int) -> int:
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    return runner.train_loop.sample_subnet(iteration).depth
