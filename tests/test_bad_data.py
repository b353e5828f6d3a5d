"""Images that cannot be read, losses that are not finite, candidates that need too much memory."""

import json
import math
import re
from copy import deepcopy
from pathlib import Path

import faults  # noqa: F401  registers what configs name
import numpy as np
import pytest
import torch
from conftest import runner_of
from mmengine.hooks import Hook
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from mmpretrain.datasets import MNIST
from torch import nn

from tas_lora import UserError, apis
from tas_lora.engine import SupernetOptimWrapper
from tas_lora.engine.search.candidate_evaluator import CandidateEvaluator
from tas_lora.models.safe_load import read_checkpoint, read_state_dict
from tas_lora.search import Outcome


@DATASETS.register_module(force=True)
class BrokenMNIST(MNIST):
    """Digits, some of which cannot be read."""

    def __init__(self, broken: list[int], **kwargs):
        self.broken = set(broken)
        super().__init__(**kwargs)

    def prepare_data(self, idx):
        if self.get_data_info(idx)['sample_idx'] in self.broken:
            raise OSError('image file is truncated')
        return super().prepare_data(idx)


def with_broken(cfg, loader: str, broken):
    """Break images of a loader."""
    node = cfg[loader].dataset
    while node.type != 'MNIST':
        node = node.dataset
    node.update(type='BrokenMNIST', broken=list(broken))
    return cfg


def log_of(cfg) -> str:
    return next(Path(cfg.work_dir).glob('*/*.log')).read_text()


@pytest.mark.parametrize('workers', [0, 2])
def test_a_broken_image_stops_the_run(digits_config, workers):
    cfg = with_broken(digits_config('supernet'), 'train_dataloader', range(0, 200, 3))
    cfg.train_dataloader.num_workers = workers
    message = (
        r'images cannot be read, the last image \d+: OSError: image file is truncated; repair or '
        'remove it, or allow more than train_cfg.max_bad_images=0'
    )
    with pytest.raises(UserError, match=message):
        apis.train(cfg)


@pytest.mark.parametrize('workers', [0, 2])
def test_broken_images_are_replaced_up_to_a_limit(digits_config, workers):
    cfg = with_broken(digits_config('supernet'), 'train_dataloader', [3, 30, 60, 90])
    cfg.train_dataloader.num_workers = workers
    cfg.train_cfg.max_bad_images = 4
    apis.train(cfg)  # two epochs: no image is counted twice
    log = log_of(cfg)
    assert log.count('images cannot be read') <= 4
    assert 'OSError: image file is truncated: replaced by another.' in log
    cfg.train_cfg.max_bad_images = 1
    cfg.work_dir += '_strict'
    with pytest.raises(UserError, match='2 images cannot be read, the last'):
        apis.train(cfg)


@pytest.mark.parametrize('workers', [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_data_set_of_broken_images_stops_the_run(digits_config, workers):
    cfg = with_broken(digits_config('supernet'), 'train_dataloader', range(10_000))
    cfg.train_dataloader.num_workers = workers
    cfg.train_cfg.max_bad_images = 10_000
    with pytest.raises(UserError, match='cannot be read'):
        apis.train(cfg)


def test_an_evaluation_leaves_no_image_out(digits_config):
    cfg = with_broken(digits_config('supernet'), 'val_dataloader', range(0, 2000, 9))
    with pytest.raises(UserError, match=r'^image \d+: .*; an evaluation skips no image'):
        apis.train(cfg)
    cfg = with_broken(digits_config('search'), 'val_dataloader', range(0, 2000, 9))
    with pytest.raises(UserError, match=r'^image \d+: .*; an evaluation skips no image'):
        Runner.from_cfg(cfg).val()


def spoiled(cfg, iterations, max_bad_steps: int = 0):
    cfg.custom_hooks = [*cfg.get('custom_hooks', ())]
    cfg.custom_hooks.append(dict(type='SpoilInputs', iterations=iterations))
    cfg.train_cfg.max_bad_steps = max_bad_steps
    return cfg


def fuse(cfg) -> None:
    """As on a GPU by default: steps are skipped on the device, and that is read back late."""
    for part in (cfg.optim_wrapper, *cfg.optim_wrapper.values()):
        if isinstance(part, dict) and 'optimizer' in part:
            part['optimizer']['fused'] = True


@pytest.mark.parametrize(
    ('stage', 'is_late'), [('supernet', False), ('moLE', False), ('moLE', True)]
)
def test_a_nan_loss_stops_the_run_and_names_all(digits_config, stage, is_late):
    cfg = spoiled(digits_config(stage), iterations=[12])
    if is_late:
        fuse(cfg)
    with pytest.raises(UserError) as caught:
        apis.train(cfg)
    message = str(caught.value)
    assert message.startswith('the loss is nan, and it or a gradient is infinite or NaN')
    assert 'the step was not taken: iteration 12, learning rates' in message
    assert f'last good checkpoint {cfg.work_dir}/epoch_1.pth' in message
    assert 'subnet Subnet(embed_dim=' in message
    assert 'train_cfg.max_bad_steps=1' in message
    assert ('experts.lr' in message) == (stage == 'moLE')


@pytest.mark.parametrize('stage', ['supernet', 'moLE'])
def test_bad_steps_are_left_out_up_to_a_limit(digits_config, stage):
    cfg = spoiled(digits_config(stage), iterations=[2, 12], max_bad_steps=2)
    apis.train(cfg)
    weights = read_state_dict(f'{cfg.work_dir}/epoch_2.pth')
    assert all(value.isfinite().all() for value in weights.values())
    log = log_of(cfg)
    assert '(1 of at most 2)' in log
    assert '(2 of at most 2)' in log
    again = spoiled(digits_config(stage), iterations=[2, 3, 12], max_bad_steps=2)
    again.work_dir += '_again'
    with pytest.raises(UserError, match='iteration 12'):
        apis.train(again)


@pytest.mark.parametrize(('counts', 'iterations'), [(1, [1, 5, 7]), (2, [1, 4, 7])])
def test_steps_skipped_on_the_device_are_those_that_are_read_back_at_once(
    digits_config, counts, iterations
):
    """The same weights and log; the bad steps are counted in the checkpoint.

    Iteration 4 only adds to the gradients that 5 steps on.
    """
    found = []
    for hook in ('RuntimeInfoHook', 'tas_lora.LateInfoHook'):
        cfg = spoiled(digits_config('moLE', images=96), iterations, max_bad_steps=3)
        fuse(cfg)
        cfg.optim_wrapper.accumulative_counts = counts
        cfg.default_hooks.runtime_info = dict(type=hook)
        cfg.work_dir += hook
        runner = apis.train(cfg)
        weights = read_state_dict(f'{cfg.work_dir}/epoch_2.pth')
        assert all(value.isfinite().all() for value in weights.values())
        hub = read_checkpoint(f'{cfg.work_dir}/epoch_2.pth')['message_hub']['runtime_info']
        losses = [str(x) for x in runner.message_hub.get_scalar('train/loss').data[0]]  # 'nan'
        places = re.findall('iteration [0-9]+, .*', log_of(cfg).replace(cfg.work_dir, ''))
        assert [int(place.split()[1][:-1]) for place in places] == [1, 5, 7]
        found.append((weights, hub['bad_steps'], losses, places))
    (weights, *rest), (late_weights, *late_rest) = found
    assert weights.keys() == late_weights.keys()
    assert all(torch.equal(weights[name], late_weights[name]) for name in weights)
    assert rest == late_rest
    assert (rest[0], len(rest[1]), len(rest[2])) == (3, 12 - 3, 3)


def test_a_stop_by_a_signal_counts_the_bad_steps_before_it(digits_config):
    """Stopped while two are unread, and resumed, a training ends as it does undisturbed."""
    found = []
    for name, hooks in (('whole', []), ('stopped', [dict(type='SignalAt', iteration=2)])):
        cfg = spoiled(digits_config('supernet', images=64), [1, 2, 6], max_bad_steps=3)
        fuse(cfg)
        cfg.default_hooks.logger.interval = 100
        cfg.work_dir += name
        again = cfg.copy()
        cfg.custom_hooks = [*cfg.custom_hooks, *hooks]
        if hooks:
            with pytest.raises(SystemExit):
                apis.train(cfg)
            stopped = read_checkpoint(f'{cfg.work_dir}/stopped_iter_3.pth')['message_hub']
            assert stopped['runtime_info']['bad_steps'] == 2
            again.train_cfg.allow_changes, again.resume = True, True  # its hooks are others
        runner = apis.train(again)
        checkpoint = read_checkpoint(f'{cfg.work_dir}/epoch_2.pth')
        losses = runner.message_hub.get_scalar('train/loss').data[0].tolist()
        bad = checkpoint['message_hub']['runtime_info']['bad_steps']
        found.append((checkpoint['state_dict'], bad, losses))
    (weights, *rest), (resumed, *resumed_rest) = found
    assert rest == resumed_rest
    assert (rest[0], len(rest[1])) == (3, 5)
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)


@pytest.mark.parametrize(
    'loop',
    [
        dict(type='EpochBasedTrainLoop', max_epochs=2, val_interval=1),
        dict(type='IterBasedTrainLoop', max_iters=8, val_interval=3),
    ],
    ids=['epochs', 'iterations'],
)
def test_a_bad_step_in_a_loop_of_mmengine_is_named_before_a_validation(digits_config, loop):
    cfg = spoiled(digits_config('supernet', images=64), [1])
    fuse(cfg)
    cfg.default_hooks.logger.interval = 100
    cfg.train_cfg, cfg.val_cfg, cfg.test_cfg = loop, dict(), dict()  # of one network
    cfg.custom_hooks.append(dict(type='EndInValidation'))
    with pytest.raises(UserError, match=r'not taken: iteration 1, learning rates \{.lr.: 0\.'):
        apis.train(cfg)


class SaveEarly(Hook):
    """Writes a checkpoint after each iteration, before other hooks hear of it."""

    priority = 'HIGHEST'

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        runner.save_checkpoint(runner.work_dir, f'early_{batch_idx}.pth')


def test_the_step_of_an_unfinished_iteration_is_read_before_a_checkpoint(digits_config):
    cfg = spoiled(digits_config('supernet', images=64), [1])
    fuse(cfg)
    with pytest.raises(UserError, match='^the loss is nan.* iteration 1, '):
        apis.train(cfg, hooks=[SaveEarly()])
    assert [path.name for path in Path(cfg.work_dir).rglob('*.pth')] == ['early_0.pth']


@pytest.mark.parametrize('bad', [(False, False), (True, False), (False, True), (True, True)])
def test_of_several_steps_in_an_iteration_no_bad_one_is_lost(bad):
    parameter = nn.Parameter(torch.tensor([1.0, -2.0]))
    wrapper = SupernetOptimWrapper(torch.optim.AdamW([parameter], lr=0.1, fused=True))
    wrapper.is_read_late = True
    for number, is_bad in enumerate(bad, 1):
        before = parameter.detach().clone()
        wrapper.update_params((parameter * 0).sum() + (math.inf if is_bad else number))
        assert torch.equal(before, parameter) == is_bad  # decay moves it
    loss, found = wrapper.take_unread()
    assert found == any(bad)
    assert loss == (math.inf if any(bad) else 2)
    assert wrapper.take_unread() is None


def test_a_wrapper_with_a_step_of_its_own_knows_no_skipping():
    """It may have been written for MMEngine's."""

    class Counting(SupernetOptimWrapper):
        steps = 0

        def step(self, **kwargs):
            assert not kwargs
            self.steps += 1
            super().step(**kwargs)

    parameter = nn.Parameter(torch.ones(2))
    wrapper = Counting(torch.optim.SGD([parameter], lr=0.1))
    wrapper.update_params(parameter.sum())
    assert wrapper.steps == 1
    assert torch.equal(parameter, torch.full((2,), 0.9))


@pytest.mark.parametrize('fused', [False, True])
def test_a_checkpoint_of_other_kernels_is_resumed_with_ones_own(fused):
    """A training begun on a CPU and resumed on a GPU, or the other way round."""

    def wrapper(parameter, fused):
        return SupernetOptimWrapper(torch.optim.AdamW([parameter], lr=0.1, fused=fused))

    parameters = [nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2)]
    begun, resumed = (wrapper(p, f) for p, f in zip(parameters, (not fused, fused), strict=True))
    begun.update_params(parameters[0].square().sum())
    state = deepcopy(begun.state_dict())  # as a file: torch would share its tensors
    resumed.load_state_dict(state)
    assert state['param_groups'][0]['fused'] == (not fused)
    assert resumed.optimizer.param_groups[0]['fused'] == fused
    with torch.no_grad():
        parameters[1].copy_(parameters[0])
    for one, parameter in zip((begun, resumed), parameters, strict=True):
        one.update_params(parameter.square().sum())
    torch.testing.assert_close(*parameters)


@pytest.mark.parametrize('by_epoch', [False, True])
def test_no_checkpoint_is_written_before_a_bad_step_is_read(digits_config, by_epoch):
    cfg = spoiled(digits_config('supernet', images=64), iterations=[1])
    fuse(cfg)
    cfg.default_hooks.checkpoint.update(by_epoch=by_epoch, interval=1 if by_epoch else 3)
    with pytest.raises(
        UserError, match='^the loss is nan.* iteration 1, .* last good checkpoint none'
    ):
        apis.train(cfg)
    assert not list(Path(cfg.work_dir).rglob('*.pth'))


@pytest.mark.parametrize('intervals', [(4, 100), (100, 4)])
def test_a_bad_step_is_read_before_its_line_is_logged(digits_config, intervals):
    cfg = spoiled(digits_config('supernet'), iterations=[1])
    fuse(cfg)
    cfg.default_hooks.logger.interval = intervals[0]
    cfg.custom_hooks.append(dict(type='LoggerHook', interval=intervals[1]))
    with pytest.raises(UserError, match='^the loss is nan.* iteration 1, '):
        apis.train(cfg)
    assert 'loss: ' not in log_of(cfg)


@pytest.mark.parametrize('stage', ['supernet', 'moLE'])
@pytest.mark.parametrize('what', ['loss', 'gradient'])
def test_a_bad_step_changes_nothing(digits_config, stage, what):
    runner = runner_of(digits_config(stage))
    wrapper, model = runner.optim_wrapper, runner.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = [p for p in model.parameters() if p.requires_grad]
    loss = sum((p * torch.ones_like(p)).sum() for p in trained)
    if what == 'loss':
        loss = loss + math.inf
    else:
        trained[3].register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(UserError, match='the step was not taken'):
        wrapper.update_params(loss)
    assert all(p.grad is None for p in trained)
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    wrapper.update_params(sum(p.sum() for p in trained[5:]))  # the next one is taken
    assert any(not torch.equal(value, after[name]) for name, value in before.items())


def search_with(cfg, monkeypatch, fail) -> list[dict]:
    """A search in which ``fail(n)`` is called before the n-th evaluation."""
    predict, count = CandidateEvaluator._predict, iter(range(10_000))

    def predict_or_fail(self, task, evaluator):
        predict(self, task, evaluator)
        fail(next(count))

    monkeypatch.setattr(CandidateEvaluator, '_predict', predict_or_fail)
    Runner.from_cfg(cfg).val()
    lines = Path(cfg.work_dir, 'search_history.jsonl').read_text().splitlines()
    return [json.loads(line) for line in lines]


SMALL = {'val_cfg.evolution': dict(population=6, generations=2, mutations=2, crossovers=2)}
OUT_OF_MEMORY = [
    torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 GiB.'),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"
    ),
    MemoryError(),
]


@pytest.mark.parametrize('error', OUT_OF_MEMORY)
def test_a_candidate_out_of_memory_does_not_end_the_search(digits_config, monkeypatch, error):
    def fail(number):
        if number in (0, 7):
            raise error

    history = search_with(digits_config('search', options=SMALL), monkeypatch, fail)
    assert len(history) == 12
    without = [i for i, line in enumerate(history) if 'cross_entropy' not in line]
    assert without == [0, 7]


def test_other_errors_do(digits_config, monkeypatch):
    def fail(number):
        raise RuntimeError('a shape is wrong')

    with pytest.raises(RuntimeError, match='a shape is wrong'):
        search_with(digits_config('search', options=SMALL), monkeypatch, fail)


def test_a_nan_score_never_wins(digits_config, monkeypatch):
    cfg = digits_config('search', options=SMALL)
    evaluate = CandidateEvaluator.__call__
    scores = iter([np.nan, 3.0, np.nan, 2.0] + 20 * [np.nan])

    def nearly_nan(self, task):
        return Outcome(evaluate(self, task).metrics | dict(cross_entropy=next(scores)))

    monkeypatch.setattr(CandidateEvaluator, '__call__', nearly_nan)
    Runner.from_cfg(cfg).val()
    best = json.loads(Path(cfg.work_dir, 'best_subnet.json').read_text())
    assert best['cross_entropy'] == 2.0


def test_float16_without_an_end_to_bad_gradients_stops(digits_config):
    """Loss scaling leaves a bad step out and tries a lower scale, which does not help here."""
    cfg = digits_config('supernet', options={'optim_wrapper.amp': 'float16'})
    wrapper = runner_of(cfg).optim_wrapper
    parameter = next(wrapper.parameters())
    parameter.register_hook(lambda gradient: gradient * math.nan)

    def steps(count: int) -> None:
        for _ in range(count):
            wrapper.update_params((parameter * torch.ones_like(parameter)).sum())

    steps(10)  # left out, as loss scaling does
    with pytest.raises(UserError, match='infinite or NaN at any loss scale'):
        steps(10)
    assert parameter.isfinite().all()
