"""Long runs hold no more at their end than at their start: memory, files, threads, workers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, call_tool

CONFIG = """
_base_ = '{root}/configs/digits_{stage}.py'
custom_imports = dict(imports=['faults'])
load_from = None
custom_hooks = [
    dict(type='tas_lora.MoLEHook'),
    dict(type='LogResources', file='{log}', interval={interval}),
]
"""
TRAINING = """
train_dataloader = dict(num_workers=2, batch_size=32)
train_cfg = dict(max_epochs={epochs}, val_interval=1)
"""
SEARCH = """
val_cfg = dict(constraints=None, evolution=dict(
    population=50, generations=20, parents=10, mutations=25, crossovers=25))
"""


def run_tool(tmp_path, tool: str, stage: str, text: str, *arguments) -> list[dict]:
    """Run a tool on a config; returns what it held on the way."""
    config, log = tmp_path / f'{stage}.py', tmp_path / f'{stage}.jsonl'
    interval = 100 if tool == 'train.py' else 25
    config.write_text(CONFIG.format(root=ROOT, stage=stage, log=log, interval=interval) + text)
    (tmp_path / 'tmp').mkdir(exist_ok=True)
    environment = os.environ | dict(
        PYTHONPATH=str(ROOT / 'tests'), OMP_NUM_THREADS='1', TMPDIR=str(tmp_path / 'tmp')
    )
    command = [sys.executable, ROOT / 'tools' / tool, config, *arguments]
    command += ['--work-dir', tmp_path / f'{stage}_work']
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert not list((tmp_path / 'tmp').iterdir())  # no temporary file is left
    return [json.loads(line) for line in log.read_text().splitlines()]


def assert_flat(held: list[dict]) -> None:
    """Within 2 % of memory, and no file, thread or process more, in the second half.

    The first half is to warm up: MMEngine formats its config anew for every checkpoint, and the
    cycles this leaves are not collected before about 1,800 iterations.
    """
    settled = held[len(held) // 2 :]
    memory = [entry['memory'] for entry in settled]
    print('memory, MB:', [round(value / 1e6, 1) for value in memory])
    assert max(memory) <= 1.02 * min(memory)
    for name in ('files', 'threads', 'children'):
        assert settled[-1][name] <= settled[0][name], name


@pytest.fixture(scope='module', autouse=True)
def digits():
    if not Path(ROOT, 'data/digits').exists():
        assert call_tool('prepare_digits.py', '--out', ROOT / 'data/digits') == 0


def test_2000_training_iterations_after_as_many(tmp_path):
    held = run_tool(tmp_path, 'train.py', 'moLE', TRAINING.format(epochs=24))
    assert held[-1]['count'] >= 4000
    assert_flat(held)


def test_500_candidates_of_a_search_after_as_many(tmp_path):
    run_tool(tmp_path, 'train.py', 'moLE', TRAINING.format(epochs=1))
    weights = tmp_path / 'moLE_work' / 'epoch_1.pth'
    held = run_tool(tmp_path, 'search.py', 'search', SEARCH, weights)
    assert held[-1]['count'] >= 900
    assert_flat(held)
