"""Two gloo processes against one process with the same global batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from mmengine.runner import Runner

from tas_lora import apis
from tas_lora.models.safe_load import read_state_dict


def in_order(cfg, batch_size: int):
    """Make ``cfg`` epochs of five iterations of a global batch of 8, in order."""
    cfg.train_dataloader.batch_size = batch_size
    cfg.train_dataloader.sampler.shuffle = False
    cfg.train_cfg.max_epochs = 2 if 'router' in cfg.model else 1
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if 'router' in cfg.model:
        cfg.custom_hooks = [dict(type='tas_lora.MoLEHook', router_warmup_epochs=1)]
        cfg.optim_wrapper.router.optimizer.lr = 4.0
    return cfg


def train_alone(cfg, start) -> set[int]:
    """Train in this process from a checkpoint it writes; returns the depths of the subnets."""
    runner = Runner.from_cfg(cfg)
    for layer in runner.model.backbone.mole_layers():  # at 0 the router would have no gradient
        torch.nn.init.normal_(layer.lora_b, std=0.1)
    torch.save(dict(state_dict=runner.model.state_dict()), start)
    depths, set_subnet = set(), runner.model.set_subnet

    def spy(subnet):
        depths.add(subnet.depth)
        set_subnet(subnet)

    runner.model.set_subnet = spy
    runner.train()
    return depths


def train_in_pair(cfg, config_file) -> None:
    """Train in two gloo processes, by the command a user types."""
    cfg.dump(config_file)
    environment = os.environ | dict(PYTHON=sys.executable, CUDA_VISIBLE_DEVICES='')
    command = [ROOT / 'tools' / 'dist_train.sh', config_file, '2']
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


SLOW = pytest.mark.slow  # run by `make nightly`
CASES = {
    'supernet': {},
    'sandwich': {'train_cfg.strategy.type': 'tas_lora.SandwichRule'},
    'distillation': {  # of features alone: the head has no gradient
        'train_cfg.strategy': dict(
            type='tas_lora.ParentDistillation', subnets='sandwich', logits=0.0, features=1.0
        ),
        'model.feature_map': True,
    },
    'accumulation': {'optim_wrapper.accumulative_counts': 2},
    'moLE': {},
}


@pytest.mark.full
@pytest.mark.parametrize(
    'case', [pytest.param(c, marks=() if c in ('supernet', 'moLE') else SLOW) for c in CASES]
)
def test_two_processes_equal_one(digits_config, tmp_path, case):
    stage = case if case in ('supernet', 'moLE') else 'supernet'
    alone, pair = (digits_config(stage, images=40, options=CASES[case]) for _ in range(2))
    if case == 'distillation':
        for cfg in (alone, pair):
            cfg.train_cfg.strategy.checkpoint = str(tmp_path / 'start.pth')
    alone = in_order(alone, batch_size=8)
    depths = train_alone(alone, tmp_path / 'start.pth')
    assert len(depths) > 1  # blocks are skipped in some iterations

    pair = in_order(pair, batch_size=4)
    pair.load_from, pair.work_dir = str(tmp_path / 'start.pth'), str(tmp_path / 'pair')
    train_in_pair(pair, tmp_path / 'pair.py')

    start = read_state_dict(tmp_path / 'start.pth')
    expected, found = (
        read_state_dict(f'{cfg.work_dir}/epoch_{cfg.train_cfg.max_epochs}.pth')
        for cfg in (alone, pair)
    )
    moved = {n.split('.')[0] for n in start if (expected[n] - start[n]).abs().max() > 1e-3}
    others = dict(moLE='router', distillation='feature_map')
    assert moved == {'backbone', others.get(case, 'head')}
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= 1e-5, name


def searched(work_dir) -> tuple[str, dict]:
    """The history of a search, and its result but for the command."""
    result = json.loads((Path(work_dir) / 'best_subnet.json').read_text())
    result['search'].pop('command')
    return (Path(work_dir) / 'search_history.jsonl').read_text(), result


RACE = dict(first=60, strata=2, controls=4)


@pytest.mark.full
@pytest.mark.parametrize(
    ('race', 'counts'),
    [
        pytest.param(RACE, (1, 2), marks=SLOW),  # test_ray compares more
        pytest.param(RACE, (1, 4), marks=SLOW),
        pytest.param(None, (1, 2), marks=SLOW),
    ],
)
def test_a_search_is_the_same_on_any_number_of_ranks(digits_config, tmp_path, race, counts):
    options = {
        'val_cfg.evolution': dict(population=6, generations=2, mutations=2, crossovers=2),
        'val_cfg.race': race,
    }
    cfg = digits_config('search', options=options)
    cfg.dump(tmp_path / 'search.py')
    weights = tmp_path / 'start.pth'
    torch.save(dict(state_dict=apis.load_supernet(cfg).state_dict()), weights)
    found = []
    for ranks in counts:
        folder = tmp_path / str(ranks)
        command = [ROOT / 'tools' / 'dist_search.sh', tmp_path / 'search.py', weights, str(ranks)]
        command += ['--work-dir', folder, '--no-report']
        environment = os.environ | dict(PYTHON=sys.executable, CUDA_VISIBLE_DEVICES='')
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        cost = json.loads((folder / 'search_cost.json').read_text())
        assert cost['processes'] == ranks
        found.append(searched(folder))
    assert all(other == found[0] for other in found)
