"""Fixtures: the digits on disk, their configs on a small scale, and the tools in process."""

import gc
import runpy
import signal
import sys
from itertools import count
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmengine.runner import Runner

from tas_lora.config import load_config
from tas_lora.costs.timing import slowdown as slowdown_of_timing  # noqa: F401  the real one

# Small tensors: threads cost more than they gain, above all next to other jobs.
torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parents[1]
_names = count()


def call_tool(name: str, *arguments) -> int:
    """Run a tool in this process; returns its exit code."""
    argv, sys.argv = sys.argv, [name, *map(str, arguments)]
    try:
        runpy.run_path(str(ROOT / 'tools' / name), run_name='__main__')
    except SystemExit as stop:
        return stop.code or 0
    finally:
        sys.argv = argv
    return 0


def runner_of(cfg, kind: type[Runner] = Runner) -> Runner:
    """A runner of a ``kind`` right before its first iteration, rates constant."""
    cfg.param_scheduler = None
    runner = kind.from_cfg(cfg)
    runner.train_loop  # noqa: B018  built on first access
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.optim_wrapper.initialize_count_status(runner.model, 0, 100)
    for point in ('before_run', 'before_train', 'before_train_epoch'):
        runner.call_hook(point)
    return runner


def set_data_root(node, root) -> None:
    """Point every dataset below ``node`` to ``root``."""
    if isinstance(node, dict):
        if 'data_root' in node:
            node['data_root'] = str(root)
        for value in node.values():
            set_data_root(value, root)


def pytest_collection_finish():
    """What is imported stays: MMEngine collects garbage for each data set it opens."""
    gc.collect()
    gc.freeze()


def own_message_hub(runner, _=None) -> MessageHub:
    """MMEngine names a hub by the second: two runs that start in one would share what they know."""
    return MessageHub.get_instance(f'{runner._experiment_name}_{next(_names)}')


@pytest.fixture(autouse=True)
def short_starts(monkeypatch):
    """What MMEngine logs at a start, laid out, takes longer than the runs; processes do log it."""
    for home in ('mmengine.config.config', 'yapf.yapflib.yapf_api'):  # the fork has the latter
        monkeypatch.setattr(f'{home}.FormatCode', lambda text, **_: (text, False), raising=False)
    monkeypatch.setattr('mmengine.runner.runner.collect_env', dict)
    monkeypatch.setattr(Runner, 'build_message_hub', own_message_hub)


@pytest.fixture(autouse=True)
def any_precision(monkeypatch):
    """Tests run in low precision also on a processor that is slow in it, and would be refused."""
    monkeypatch.setattr('tas_lora.engine.slow_options.slowdown', lambda dtype: (1.0, 1e9))


@pytest.fixture(autouse=True)
def fresh_loggers():
    """MMEngine keeps loggers by name and second; a reused one would write to a closed capture."""
    yield
    MMLogger._instance_dict.clear()


@pytest.fixture(autouse=True)
def same_signals():
    """A training that a test leaves halfway has handlers, which make forked processes deaf."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture(scope='session')
def digits_root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('data') / 'digits'
    assert call_tool('prepare_digits.py', '--out', root) == 0
    return root


@pytest.fixture(scope='module')
def shared(tmp_path_factory) -> Path:
    """A folder for what the tests of a module make once."""
    return tmp_path_factory.mktemp('shared')


@pytest.fixture
def digits_config(digits_root, tmp_path):
    """Makes small configs of the digits: ``digits_config('moLE', images=32, ...options)``."""

    def make(stage: str, images: int = 160, options: dict | None = None) -> Config:
        cfg = load_config(ROOT / 'configs' / f'digits_{stage}.py', options)
        set_data_root(cfg._cfg_dict, digits_root)
        cfg.experiment_name = f'test-{next(_names)}'  # names MMEngine's global log buffers
        cfg.work_dir = str(tmp_path / stage)
        cfg.load_from = None
        if cfg.train_dataloader is not None:
            train = cfg.train_dataloader.dataset
            train.times = 1
            train.dataset.size = 1437 - images  # the first of these are those of the validation
            train.dataset.dataset.pipeline = [dict(type='PackInputs')]
            cfg.train_dataloader.batch_size = 16
            cfg.train_cfg.max_epochs = 2
        return cfg

    return make
