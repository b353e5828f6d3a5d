"""Stage-wise training in two gloo processes against one with the same global batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from nas_lora.images.shapes import write_shapes
from nas_lora.registry import MODELS
from nas_lora.study.methods import Run
from tiny_encoder import wake
from tool_calls import PROJECT, call

from tas_lora.models.safe_load import read_state_dict

EPOCHS = 3


def config(folder: Path, batch_size: int) -> Config:
    """Three epochs of two batches, in order; plain SGD, whose steps are the gradients."""
    cfg = Run('nas_lora', 0).config(str(folder / 'nuclei'), str(folder / 'sam.pth'))
    cfg.train_cfg.update(max_epochs=EPOCHS, val_interval=EPOCHS)
    cfg.custom_hooks[0].weight_epochs = 1
    for name, rate in dict(weights=0.1, alpha=10.0).items():
        cfg.optim_wrapper[name].optimizer = dict(type='SGD', lr=rate)
    cfg.train_dataloader.update(batch_size=batch_size, sampler=dict(shuffle=False))
    cfg.train_dataloader.dataset.pipeline = cfg.test_dataloader.dataset.pipeline  # no flips
    cfg.load_from = str(folder / 'start.pth')
    return cfg


def write_start(folder: Path) -> dict[str, torch.Tensor]:
    """Images, and weights as after some training, so that all have gradients."""
    write_shapes(folder / 'nuclei', dict(train=16, val=5))
    cfg = config(folder, 8)
    torch.manual_seed(0)
    sam = MODELS.build(dict(cfg.model.model, pretrained=None))
    for value in sam.parameters():
        torch.nn.init.normal_(value, mean=float(value.ndim == 1), std=0.2)
    torch.save(dict(state_dict=sam.state_dict()), folder / 'sam.pth')
    model = MODELS.build(cfg.model)
    wake(model)
    torch.save(dict(state_dict=model.state_dict(), meta=dict()), folder / 'start.pth')
    return model.state_dict()


def train_in_pair(path: Path, work_dir: Path) -> None:
    """Train in two processes, by the command a user types, which must not hang."""
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2']
    command += [PROJECT / 'tools/train.py', path, '--launcher', 'pytorch', '--work-dir', work_dir]
    environment = os.environ | dict(OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
    pipes = dict(capture_output=True, text=True, check=False)
    done = subprocess.run(command, env=environment, timeout=180, **pipes)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def last_iou(work_dir: Path) -> float:
    [log] = work_dir.glob('*/vis_data/scalars.json')
    return json.loads(log.read_text().splitlines()[-1])['iou']


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    start = write_start(tmp_path)
    folders = [tmp_path / name for name in ('alone', 'pair')]
    paths = [folder.with_suffix('.py') for folder in folders]
    for path, batch_size in zip(paths, (8, 4), strict=True):
        config(tmp_path, batch_size).dump(path)
    call('train.py', paths[0], '--work-dir', folders[0])
    train_in_pair(paths[1], folders[1])
    alone, pair = (read_state_dict(folder / f'epoch_{EPOCHS}.pth') for folder in folders)
    for name, value in alone.items():
        assert torch.allclose(pair[name], value, rtol=1e-5, atol=1e-6), name
    for kind in ('alpha', 'operations', 'down', 'up', 'decoder'):
        moved = [(value - start[name]).abs().max() for name, value in alone.items() if kind in name]
        assert max(moved) > 3e-5, kind
    assert last_iou(folders[1]) == pytest.approx(last_iou(folders[0]), abs=1e-6)
