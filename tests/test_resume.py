"""A training that was stopped and resumed ends with the weights of an undisturbed one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import faults  # noqa: F401  registers what configs name
import pytest
import torch
from conftest import ROOT

from tas_lora import UserError, apis
from tas_lora.errors import STOPPED
from tas_lora.models.safe_load import read_checkpoint, read_state_dict

AUGMENTED = [dict(type='RandomCrop', crop_size=8, padding=1), dict(type='PackInputs')]
MIXUP = dict(augments=[dict(type='Mixup', alpha=0.8)])
EMA = dict(type='EMAHook', ema_type='ExponentialMovingAverage', momentum=0.1)
FINE_TUNE = dict(type='tas_lora.ResumableTrainLoop', max_epochs=2)


@pytest.fixture
def config(digits_config, tmp_path):
    """Makes a small config, augmented in all ways: 2 epochs of 4 iterations."""

    def make(stage: str, name: str, workers: int = 0, ema: bool = False, hooks=(), **train_cfg):
        cfg = digits_config('moLE' if stage == 'moLE' else 'supernet', images=64)
        cfg.train_dataloader.dataset.dataset.dataset.pipeline = AUGMENTED
        cfg.train_dataloader.num_workers = workers
        cfg.model.train_cfg = MIXUP
        cfg.custom_hooks = [*cfg.get('custom_hooks', ()), *([EMA] if ema else ()), *hooks]
        if stage == 'fine-tune':  # one network
            cfg.train_cfg = dict(FINE_TUNE)
            cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
        cfg.train_cfg.update(train_cfg)
        cfg.custom_imports = dict(imports=['faults'])
        cfg.work_dir = str(tmp_path / name)
        return cfg

    return make


def stop_at(iteration: int, **kwargs) -> list[dict]:
    return [dict(type='SignalAt', iteration=iteration, **kwargs)]


def train_and_stop(cfg) -> Path:
    with pytest.raises(SystemExit) as stopped:
        apis.train(cfg)
    assert stopped.value.code == STOPPED
    return apis.find_resumable(cfg.work_dir)


def resume(cfg, checkpoint) -> dict:
    cfg.load_from, cfg.resume = str(checkpoint), True
    apis.train(cfg)
    return final(cfg)


def final(cfg) -> dict:
    return read_checkpoint(f'{cfg.work_dir}/epoch_2.pth')


def assert_same(expected: dict, found: dict) -> None:
    """Bitwise the same weights, averaged weights, and states of optimizers and schedules."""
    assert_equal(expected['state_dict'], found['state_dict'])
    assert_equal(expected.get('ema_state_dict', {}), found.get('ema_state_dict', {}))
    assert_equal(expected['optimizer'], found['optimizer'])
    assert_equal(expected['param_schedulers'], found['param_schedulers'])


def assert_equal(expected, found, path: str = '') -> None:
    if isinstance(expected, torch.Tensor):
        assert torch.equal(expected, found), path
    elif isinstance(expected, dict):
        assert expected.keys() == found.keys(), path
        for key, value in expected.items():
            assert_equal(value, found[key], f'{path}.{key}')
    elif isinstance(expected, (list, tuple)):
        assert len(expected) == len(found), path
        for i, pair in enumerate(zip(expected, found, strict=True)):
            assert_equal(*pair, f'{path}.{i}')
    else:
        assert expected == found, path


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('ema', [False, True])
@pytest.mark.parametrize('stage', ['supernet', 'moLE', 'fine-tune'])
def test_stopped_and_resumed_equals_undisturbed(config, stage, ema, workers):
    whole = config(stage, 'whole', workers, ema)
    apis.train(whole)
    for iteration in (1, 5):  # in the first and in the second epoch
        name = f'stopped{iteration}'
        checkpoint = train_and_stop(config(stage, name, workers, ema, stop_at(iteration)))
        assert checkpoint.name == f'stopped_iter_{iteration + 1}.pth'
        resumed = config(stage, name, workers, ema, allow_changes=True)  # its hooks are others
        assert_same(final(whole), resume(resumed, checkpoint))
        assert not checkpoint.exists()  # a later one took its place


def test_the_epoch_boundary_too(config):
    whole = config('moLE', 'whole', ema=True)
    apis.train(whole)
    found = resume(config('moLE', 'resumed', ema=True), f'{whole.work_dir}/epoch_1.pth')
    assert_same(final(whole), found)


def test_number_of_workers_changes_nothing(config):
    weights = []
    for workers in (0, 1, 3):
        cfg = config('supernet', f'workers{workers}', workers)
        apis.train(cfg)
        weights.append(final(cfg)['state_dict'])
    assert_equal(weights[0], weights[1])
    assert_equal(weights[0], weights[2])


def batches(cfg, epochs: int = 2) -> list[torch.Tensor]:
    """Images of each epoch as they are trained on, in the order of their labels and content."""
    runner, seen = apis.prepare_training(cfg), []
    seen = [[] for _ in range(epochs)]

    def spy(point, **kwargs):
        if point == 'before_train_iter':
            seen[runner.epoch].extend(kwargs['data_batch']['inputs'])
        type(runner).call_hook(runner, point, **kwargs)

    runner.call_hook = spy
    runner.train()
    return [torch.stack(images).float() for images in seen]


@pytest.mark.parametrize(('workers', 'persistent'), [(0, False), (2, False), (2, True)])
def test_augmentation_differs_between_epochs(config, workers, persistent):
    cfg = config('supernet', 'seen', workers)
    cfg.train_dataloader.persistent_workers = persistent
    cfg.train_dataloader.sampler.shuffle = False
    first, second = batches(cfg)
    changed = (first != second).flatten(1).any(1).float().mean()
    assert changed > 0.5  # 8 of 9 shifts are no identity


def test_the_seed_of_the_first_start_is_kept(config):
    """With `randomness.seed=None` every start would draw another."""
    whole = config('supernet', 'whole')
    whole.randomness = dict(seed=None, diff_rank_seed=True)
    apis.train(whole)
    resumed = config('supernet', 'resumed')
    resumed.randomness = dict(seed=None, diff_rank_seed=True)
    assert_same(final(whole), resume(resumed, f'{whole.work_dir}/epoch_1.pth'))


def test_zero_gradients_of_torch_1_are_resumed(config):
    """With set_to_none=False, blocks that were active once are moved by decay and momentum."""
    configs = [config('supernet', name) for name in ('whole', 'resumed')]
    for cfg in configs:
        cfg.optim_wrapper.set_to_none = False
    apis.train(configs[0])
    found = resume(configs[1], f'{configs[0].work_dir}/epoch_1.pth')
    assert_same(final(configs[0]), found)


CHANGES = {
    'train_cfg.max_epochs': (3, 'train_cfg.max_epochs is 2 in the checkpoint, 3 now'),
    'train_cfg.seed': (7, 'train_cfg.seed is 0 in the checkpoint, 7 now'),
    'train_cfg.space.depth': ([2], r'train_cfg.space.depth is \[2, 3, 4\] in the'),
    'optim_wrapper.optimizer.lr': (1.0, 'optim_wrapper.optimizer.lr is 0.004 in the checkpoint'),
    'param_scheduler.1.T_max': (99, 'param_scheduler.1.T_max is 28 in the checkpoint, 99 now'),
    'train_dataloader.batch_size': (8, 'train_dataloader.batch_size is 16 in the checkpoint'),
}


@pytest.mark.parametrize('field', CHANGES)
def test_another_run_is_not_resumed(config, field):
    first = config('supernet', 'first')
    apis.train(first)
    value, message = CHANGES[field]
    other = config('supernet', 'other')
    other.merge_from_dict({field: value})
    with pytest.raises(UserError, match=message):
        resume(other, f'{first.work_dir}/epoch_1.pth')


def test_changes_can_be_allowed_and_are_spelled_out(config, caplog):
    first = config('supernet', 'first')
    apis.train(first)
    longer = config('supernet', 'longer', max_epochs=3, allow_changes=True)
    resume(longer, f'{first.work_dir}/epoch_1.pth')
    log = next(Path(longer.work_dir).glob('*/*.log')).read_text()
    assert 'Changed since the checkpoint: train_cfg.max_epochs is 2' in log
    assert Path(longer.work_dir, 'epoch_3.pth').exists()


def test_speed_and_places_may_change(config):
    first = config('supernet', 'first')
    apis.train(first)
    faster = config('supernet', 'faster', workers=2, val_interval=1)
    faster.model.backbone.with_cp = True
    assert_equal(
        final(first)['state_dict'],
        resume(faster, f'{first.work_dir}/epoch_1.pth')['state_dict'],
    )


def dist_train(cfg, file, *options) -> subprocess.CompletedProcess:
    cfg.dump(file)
    environment = os.environ | dict(PYTHONPATH=str(ROOT / 'tests'), OMP_NUM_THREADS='1')
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2']
    command += [ROOT / 'tools/train.py', file, '--launcher=pytorch', *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_two_processes_of_which_one_is_told_to_stop(config, tmp_path):
    whole = config('moLE', 'whole', workers=2, ema=True)
    done = dist_train(whole, tmp_path / 'whole.py')
    assert done.returncode == 0, done.stderr[-3000:]
    stopped = config('moLE', 'stopped', 2, True, stop_at(1, rank=1))
    done = dist_train(stopped, tmp_path / 'stopped.py')
    assert 'Stopped by a signal' in done.stdout + done.stderr
    assert f'exitcode  : {STOPPED}' in done.stderr
    again = config('moLE', 'stopped', workers=2, ema=True, allow_changes=True)
    done = dist_train(again, tmp_path / 'again.py', '--resume')
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'resumed epoch: 0, iter: 2' in done.stdout + done.stderr
    assert_same(final(whole), final(again))


def test_a_killed_training_goes_on_from_the_newest_whole_file(config, tmp_path):
    whole = config('supernet', 'whole')
    apis.train(whole)
    killed = config('supernet', 'killed', hooks=stop_at(6, number=int(signal.SIGKILL)))
    killed.dump(tmp_path / 'killed.py')
    environment = os.environ | dict(PYTHONPATH=str(ROOT / 'tests'))
    command = [sys.executable, ROOT / 'tools/train.py', tmp_path / 'killed.py']
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    checkpoint = apis.find_resumable(killed.work_dir)
    assert checkpoint.name == 'epoch_1.pth'
    resumed = config('supernet', 'killed', allow_changes=True)
    assert_equal(final(whole)['state_dict'], resume(resumed, checkpoint)['state_dict'])


def test_the_validation_a_kill_cost_is_made_up_for(config):
    whole = config('supernet', 'whole', val_interval=1)
    whole.default_hooks.checkpoint.update(save_best='largest/accuracy/top1')
    apis.train(whole)
    best = [path.name for path in Path(whole.work_dir).glob('best_*')]
    resumed = config('supernet', 'resumed', val_interval=1)
    resumed.default_hooks.checkpoint.update(save_best='largest/accuracy/top1')
    resume(resumed, f'{whole.work_dir}/epoch_1.pth')
    hub = final(resumed)['message_hub']['log_scalars']['val/largest/accuracy/top1']
    assert len(hub._log_history) == 2
    assert best


def test_accumulated_gradients_are_stepped_before_a_stop(config):
    """Stopped in the first of two iterations that make a step."""
    configs = [config('supernet', 'whole'), config('supernet', 'stopped', hooks=stop_at(2))]
    again = config('supernet', 'stopped', allow_changes=True)
    for cfg in (*configs, again):
        cfg.optim_wrapper.accumulative_counts = 2
    apis.train(configs[0])
    checkpoint = train_and_stop(configs[1])
    assert checkpoint.name == 'stopped_iter_4.pth'
    assert_same(final(configs[0]), resume(again, checkpoint))


def test_weights_alone_cannot_be_resumed(config, tmp_path):
    cfg = config('supernet', 'first')
    weights = tmp_path / 'weights.pth'
    torch.save(dict(state_dict=apis.load_supernet(cfg).state_dict()), weights)
    assert read_state_dict(weights)
    with pytest.raises(UserError, match=r'weights\.pth holds weights alone; start from it by load'):
        resume(cfg, weights)


def test_another_stage_cannot_be_resumed(config):
    experts = config('moLE', 'experts')
    apis.train(experts)
    with pytest.raises(UserError, match='the checkpoint holds experts, the config none'):
        resume(config('supernet', 'bare'), f'{experts.work_dir}/epoch_1.pth')
