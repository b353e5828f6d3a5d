"""Options that are slow on this machine are refused or said before a run starts."""

from pathlib import Path

import pytest
import torch
from conftest import slowdown_of_timing
from tiny import SPACE

from tas_lora import UserError, apis
from tas_lora.costs import timing
from tas_lora.engine import slow_options


def pretend(monkeypatch, factor: float, rate: float) -> None:
    """A processor whose products take ``factor`` times as long in low precision."""
    monkeypatch.setattr(slow_options, 'slowdown', lambda dtype: (factor, rate))


@pytest.fixture
def start(digits_config, tmp_path):
    torch.save(
        dict(state_dict=apis.load_supernet(digits_config('moLE')).state_dict()),
        tmp_path / 'start.pth',
    )
    return tmp_path / 'start.pth'


def test_a_slow_precision_is_refused_in_training(digits_config, monkeypatch):
    cfg = digits_config('supernet', images=32, options={'optim_wrapper.amp': 'bfloat16'})
    pretend(monkeypatch, 400, 1e8)
    with pytest.raises(UserError, match=r"^optim_wrapper\.amp is 'bfloat16', but .* 400 times as"):
        apis.prepare_training(cfg)


def test_a_slow_precision_of_experts_is_refused(digits_config, monkeypatch):
    cfg = digits_config('moLE', images=32)
    cfg.optim_wrapper.amp = 'float16'
    pretend(monkeypatch, 400, 1e8)
    with pytest.raises(UserError, match="is 'float16', but .* leave out --amp"):
        apis.prepare_training(cfg)


def test_a_slow_precision_is_refused_in_a_search(digits_config, monkeypatch, start):
    cfg = digits_config('search', options={'val_cfg.precision': 'bfloat16'})
    pretend(monkeypatch, 400, 1e8)
    with pytest.raises(UserError, match=r"^val_cfg\.precision is 'bfloat16', .* search in float32"):
        apis.prepare_search(cfg, start)
    cfg.val_cfg.precision = 'float32'
    apis.prepare_search(cfg, start)


@pytest.mark.parametrize(('factor', 'rate'), [(1.9, 1e6), (400, 1e12)])
def test_what_is_hardly_slower_is_not_refused(digits_config, monkeypatch, factor, rate):
    """Half as fast, or so small a network that nobody waits."""
    cfg = digits_config('supernet', images=32, options={'optim_wrapper.amp': 'bfloat16'})
    pretend(monkeypatch, factor, rate)
    apis.prepare_training(cfg)


def test_the_estimate_of_a_batch_by_hand(digits_config, monkeypatch):
    """10 images of 1e6 products at 1e7 a second take 1 s, in low precision 30 s."""
    model = apis.load_supernet(digits_config('supernet'))
    monkeypatch.setattr(slow_options, 'count_flops', lambda *args, **spec: 1e6)
    pretend(monkeypatch, 30, 1e7)
    with pytest.raises(UserError, match=r'some 30\.0 s, not 1\.0;'):
        slow_options.check_precision(model, torch.bfloat16, 10, 'precision', 'search')


def test_the_slowdown_is_that_of_the_clock(monkeypatch):
    seconds = iter([3.0, 1.5])
    monkeypatch.setattr(timing, '_product_seconds', lambda *args: next(seconds))
    assert slowdown_of_timing(torch.bfloat16, side=100) == (2, 1e6 / 1.5)


def test_a_slow_product_is_small_and_measured_once(monkeypatch):
    """8 times a product that takes .1 s would take longer than half a second."""
    asked = []

    def seconds(device, dtype, side, rounds):
        asked.append((side, rounds))
        return 0.1

    monkeypatch.setattr(timing, '_product_seconds', seconds)
    assert timing.matrix_rate('cpu', torch.bfloat16) == pytest.approx(256**3 / 0.1)
    assert asked == [(256, 1), (256, 10)]
    asked.clear()
    monkeypatch.setattr(timing, '_product_seconds', lambda *args: asked.append(args) or 1e-3)
    assert timing.matrix_rate('cpu', torch.float32, rounds=3) == pytest.approx(2048**3 / 1e-3)
    assert [args[2] for args in asked] == [256, 512, 1024, 2048, 2048]


def test_more_threads_than_cores_are_said(digits_config, monkeypatch):
    monkeypatch.setattr(slow_options, 'usable_cores', lambda: 2)
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 64)
    cfg = digits_config('supernet', images=32)
    apis.prepare_training(cfg)
    log = next(Path(cfg.work_dir).glob('*/*.log')).read_text()
    assert 'torch uses 64 threads, but this process may use 2' in log


@pytest.mark.parametrize(
    ('quota', 'cores'), [('max 100000', 6), ('250000 100000', 2), ('5000 100000', 1), (None, 6)]
)
def test_cores_by_affinity_and_control_group(monkeypatch, tmp_path, quota, cores):
    file = tmp_path / 'cpu.max'
    if quota is not None:
        file.write_text(quota + '\n')
    monkeypatch.setattr(slow_options, '_CGROUP', file)
    monkeypatch.setattr('os.sched_getaffinity', lambda pid: set(range(6)), raising=False)
    assert slow_options.usable_cores() == cores


def test_graphs_to_compile_are_counted(digits_config, monkeypatch):
    """3 widths, each with 2 numbers of heads and 2 MLP ratios."""
    cfg = digits_config('supernet', options={'model.backbone.compile_blocks': True})
    runner = apis.prepare_training(cfg)
    lines = list(slow_options._graphs(runner, runner.model, runner.train_loop.space))
    assert ['compiles 12 pairs of widths' in line for line in lines] == [True]
    cfg.custom_hooks = [dict(type='tas_lora.CompileWarmupHook')]
    cfg.work_dir += '_warm'
    runner = apis.prepare_training(cfg)
    assert list(slow_options._graphs(runner, runner.model, SPACE)) == []
