"""Options that are slow on this machine are refused or said before a run starts."""

from pathlib import Path
from types import SimpleNamespace

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


# GPUs, pretended: what they can do is asked, and no tensor made.


@pytest.fixture
def gpu(monkeypatch):
    """Makes a machine with a GPU of a compute capability."""

    def make(*capability: int) -> None:
        monkeypatch.setattr(slow_options, 'get_device', lambda: 'cuda')
        monkeypatch.setattr('torch.cuda.get_device_capability', lambda: capability)
        monkeypatch.setattr('torch.cuda.get_device_name', lambda: 'Old GPU')

    return make


@pytest.mark.parametrize(
    ('capability', 'advice'),
    [((7, 5), "set 'float16'"), ((6, 1), 'leave out --amp, and train in float32')],
)
def test_bfloat16_is_refused_where_a_gpu_emulates_it(gpu, capability, advice):
    gpu(*capability)
    arguments = None, torch.bfloat16, 8, 'optim_wrapper.amp', 'leave out --amp, and train'
    with pytest.raises(UserError) as caught:
        slow_options.check_precision(*arguments)
    major, minor = capability
    assert str(caught.value) == (
        f"optim_wrapper.amp is 'bfloat16', which Old GPU (compute capability {major}.{minor}) only "
        f'emulates, without its matrix units; {advice}'
    )
    gpu(8, 0)
    slow_options.check_precision(*arguments)
    gpu(7, 5)
    slow_options.check_precision(None, torch.float16, *arguments[2:])


@pytest.mark.parametrize(
    ('capability', 'dtype', 'expected'),
    [
        ((9, 0), None, '--amp bfloat16 uses'),
        ((7, 5), None, '--amp float16 uses'),
        ((6, 1), None, ''),
        ((9, 0), torch.bfloat16, ''),
        ((7, 0), torch.float16, ''),
        ((6, 1), torch.float16, 'has no matrix units'),
    ],
)
def test_what_is_said_of_precision_on_a_gpu(digits_config, gpu, capability, dtype, expected):
    runner = apis.prepare_training(digits_config('supernet', images=32))
    runner.train_loop.dataloader.num_workers = 1
    gpu(*capability)
    lines = list(slow_options._on_gpu(runner, dtype))
    assert len(lines) == bool(expected)
    assert expected in ''.join(lines)


def test_blocks_that_torch_cannot_compile_are_refused(digits_config, gpu):
    cfg = digits_config('supernet', images=32, options={'model.backbone.compile_blocks': True})
    runner = apis.prepare_training(cfg)
    gpu(6, 1)
    with pytest.raises(UserError, match=r'^model\.backbone\.compile_blocks is True, but .* 7\.0'):
        list(slow_options._graphs(runner, runner.model, SPACE))
    gpu(7, 0)
    assert list(slow_options._graphs(runner, runner.model, SPACE))


@pytest.fixture
def cores(monkeypatch, tmp_path):
    """Makes a machine of some cores, of which this process may use some, and says its processes."""

    def make(usable: int, of: int, processes: str) -> None:
        monkeypatch.setattr(slow_options, '_CGROUP', tmp_path / 'none')
        monkeypatch.setattr('os.sched_getaffinity', lambda pid: {*range(usable)}, raising=False)
        monkeypatch.setattr('os.cpu_count', lambda: of)
        monkeypatch.setenv('LOCAL_WORLD_SIZE', processes)

    return make


@pytest.mark.parametrize(
    ('workers', 'of', 'processes', 'expected'),
    [
        (4, 4, '1', ''),
        (5, 4, '1', 'set 4.'),
        (4, 4, '2', 'set 2.'),
        (4, 8, '2', ''),  # each process is pinned to its own
        (5, 8, '2', 'num_workers is 5, but'),
    ],
)
def test_more_readers_than_cores_are_said(cores, workers, of, processes, expected):
    cores(4, of, processes)
    loop = SimpleNamespace(dataloader=SimpleNamespace(num_workers=workers))
    lines = list(slow_options._workers(SimpleNamespace(train_loop=loop)))
    assert len(lines) == bool(expected)
    assert expected in ''.join(lines)


def test_threads_of_all_processes_count(cores, monkeypatch):
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 2)
    for processes, expected in (('2', ''), ('4', 'OMP_NUM_THREADS=1')):
        cores(4, 4, processes)
        assert expected in ''.join(slow_options._threads())
        assert bool(expected) == bool(list(slow_options._threads()))
