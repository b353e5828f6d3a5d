"""A search on Ray: the same result for any number of workers, and whatever happens to them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import faults  # noqa: F401  registers them
import pytest
import ray
import torch
from conftest import ROOT, call_tool
from mmengine.runner import Runner
from ray.cluster_utils import Cluster

from tas_lora import UserError, apis
from tas_lora.engine.search.ray_executor import _workers_on, workers_per_gpu

TESTS = Path(__file__).parent
EVOLUTION = dict(population=6, generations=3, parents=3, mutations=2, crossovers=2)
RACE = dict(first=60, strata=2, controls=4)
pytestmark = pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::FutureWarning')


@pytest.fixture
def config(digits_config, tmp_path, shared, monkeypatch):
    """Makes the config of a small search in a folder, with faults as hooks."""
    monkeypatch.setenv('PYTHONPATH', str(TESTS), prepend=os.pathsep)
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    weights = shared / 'weights.pth'
    if not weights.exists():
        model = apis.load_supernet(digits_config('search'))
        torch.save(dict(state_dict=model.state_dict()), weights)

    def make(folder: str, options: dict | None = None, *hooks: dict):
        cfg = digits_config('search', options={'val_cfg.evolution': EVOLUTION} | (options or {}))
        cfg.work_dir, cfg.load_from = str(tmp_path / folder), str(weights)
        cfg.custom_imports = dict(imports=['faults'])
        cfg.custom_hooks = [*cfg.custom_hooks, *hooks]
        return cfg

    return make


@pytest.fixture
def cluster():
    """A cluster of machines on this one; its head takes no workers."""
    cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=0))
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def search(cfg, **options) -> tuple[str, dict]:
    """Run; returns the history as text, and what the search cost."""
    cfg.val_cfg.ray = options or None
    Runner.from_cfg(cfg).val()
    folder = Path(cfg.work_dir)
    cost = json.loads((folder / 'search_cost.json').read_text())
    return (folder / 'search_history.jsonl').read_text(), cost


def wait_for(file: Path, lines: int = 1) -> list[str]:
    """The lines of a file, as soon as it has some."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        found = file.read_text().split() if file.exists() else []
        if len(found) >= lines:
            return found
        time.sleep(0.02)
    raise AssertionError(f'{file} has not come')


def wait_for_the_end_of(pids: list[str]) -> None:
    end = time.monotonic() + 60
    while any(map(is_running, pids)):
        assert time.monotonic() < end, pids
        time.sleep(0.1)


def is_running(pid: str) -> bool:
    """Whether there is such a process, other than one that waits for its parent."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


def log_of(cfg) -> str:
    return ''.join(path.read_text() for path in Path(cfg.work_dir).glob('*/*.log'))


@contextmanager
def searching(cfg, **options) -> Iterator[Future]:
    """Searches in a thread: Ray adds machines to a cluster in the main thread alone."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(search, cfg, **options)


KINDS = {
    'race': {'val_cfg.race': RACE},
    'exhaustive': {},
    'goals': {'val_cfg.goals': ['params']},
    'surrogate': {'val_cfg.surrogate': True, 'val_cfg.evolution.generations': 4},
    'finals': {'val_cfg.precision': 'bfloat16', 'val_cfg.finalists': 3, 'val_cfg.baseline': True},
}


@pytest.mark.full
def test_histories_are_equal_for_any_number_of_workers(config, cluster):
    """Byte by byte those of one process; here of up to 4 workers on two machines."""
    cluster.add_node(num_cpus=2)
    cluster.add_node(num_cpus=2)
    for kind, options in KINDS.items():
        expected, cost = search(config(kind, options))
        assert cost['processes'] == 1
        for count in (1, 2, 4) if kind == 'race' else (2,):
            found, cost = search(
                config(f'{kind}_{count}', options), workers=count, address=cluster.address
            )
            assert found == expected, (kind, count)
            assert cost['processes'] == count
            assert cost['retries'] == 0
            tasks = [worker['tasks'] for worker in cost['workers']]
            assert sum(tasks) >= 18
            assert all(0 <= worker['busy'] <= 1 for worker in cost['workers'])


@pytest.mark.full
def test_latency_is_measured_by_one_worker(config, tmp_path):
    told = tmp_path / 'told'
    options = {
        'val_cfg.measure': dict(rounds=3),
        'val_cfg.constraints': dict(latency=(None, 1e6)),
    }
    first = config('first', options, dict(type='TellMeasurements', file=str(told)))
    found, _ = search(first, workers=2)
    assert len(set(told.read_text().split())) == 1
    assert told.read_text().split()[0] != str(os.getpid())
    lines = [json.loads(line) for line in found.splitlines()]
    assert all(line['latency'] > 0 for line in lines)
    options['val_cfg.measured'] = str(Path(first.work_dir) / 'measured.jsonl')
    alone, _ = search(config('alone', options))
    assert alone == found


@pytest.mark.full
def test_a_killed_worker_loses_nothing(config, tmp_path):
    expected, _ = search(config('alone', KINDS['race']))
    trigger = tmp_path / 'trigger'
    trigger.touch()
    cfg = config('killed', KINDS['race'], dict(type='EndOnce', file=str(trigger)))
    found, cost = search(cfg, workers=2)
    assert not trigger.exists()
    assert found == expected
    assert cost['retries'] == 1
    assert 'has ended; its candidate is evaluated again (retry 1)' in log_of(cfg)


@pytest.mark.full
def test_a_lost_machine_loses_nothing_and_a_new_one_gets_work(config, cluster, tmp_path):
    expected, _ = search(config('alone'))
    told = tmp_path / 'told'
    node = cluster.add_node(num_cpus=2)

    gate = tmp_path / 'gate'
    gate.touch()
    cfg = config('moved', None, dict(type='TellAndWait', file=str(told), gate=str(gate)))
    with searching(cfg, workers=2, address=cluster.address) as running:
        pids = wait_for(told, 2)
        raylet = node.all_processes['raylet'][0].process
        raylet.kill()
        raylet.wait()
        wait_for_the_end_of(pids)
        gate.unlink()
        cluster.add_node(num_cpus=2)
        found, cost = running.result()
    assert found == expected
    assert cost['retries'] >= 1
    assert len(set(told.read_text().split())) > 2  # two processes before the loss


@pytest.mark.full
def test_a_machine_that_joins_late_gets_work(config, cluster, tmp_path):
    expected, _ = search(config('alone'))
    told = tmp_path / 'told'
    cluster.add_node(num_cpus=1)

    cfg = config('joined', None, dict(type='TellAndWait', file=str(told), processes=2))
    with searching(cfg, address=cluster.address) as running:  # as many as there is room for
        wait_for(told)
        cluster.add_node(num_cpus=1)
        found, cost = running.result()
    assert found == expected
    assert [worker['tasks'] > 0 for worker in cost['workers']] == [True, True]


@pytest.mark.full
@pytest.mark.parametrize(
    'killed',
    [
        pytest.param(False, id='error'),
        pytest.param(True, id='killed', marks=pytest.mark.slow),  # a minute
    ],
)
def test_a_candidate_that_is_too_large_is_infeasible(config, killed):
    """Whether Python is told or the system ends the worker, as in one process that is told."""
    hook = dict(type='RunOut', embed_dim=32)
    options = {'val_cfg.evolution': EVOLUTION | dict(population=4, generations=1)}
    expected, _ = search(config('alone', options, hook | dict(killed=False)))
    lines = [json.loads(line) for line in expected.splitlines()]
    assert {line['images'] for line in lines} == {0, 287}
    cfg = config('too_large', options, hook | dict(killed=killed))
    found, cost = search(cfg, workers=2)
    assert found == expected
    lost = sum(line['images'] == 0 for line in lines)
    assert cost['retries'] == (2 * lost if killed else 0)
    assert log_of(cfg).count('left without a score: Subnet') == lost


@pytest.mark.full
@pytest.mark.parametrize('share', [0.5, 0.0], ids=['sent', 'read'])
def test_a_worker_with_other_images_is_refused(config, cluster, share):
    options = {
        'val_dataloader.dataset.dataset.type': 'OtherOnSomeMachines',
        'val_cfg.memory_share': share,
    }
    expected, _ = search(config('alone', options))
    cluster.add_node(num_cpus=1, env_vars=dict(OTHER_DATA='1'))
    cluster.add_node(num_cpus=1)
    cfg = config('refused', options)
    found, cost = search(cfg, workers=2, address=cluster.address)
    assert found == expected
    assert sorted(worker['tasks'] > 0 for worker in cost['workers']) == [False, True]
    assert 'has other held-out images: 287, checksum' in log_of(cfg)


@pytest.mark.full
def test_an_error_in_a_task_names_worker_and_cause(config):
    cfg = config('failed', None, dict(type='FailInTask'))
    with pytest.raises(UserError, match=r'worker \d on .*: RuntimeError: a wrong shape'):
        search(cfg, workers=2)


@pytest.mark.full
def test_a_killed_driver_resumes_and_leaves_no_process(config, tmp_path):
    expected, _ = search(config('alone'))
    told = tmp_path / 'told'
    cfg = config('driver', None, dict(type='TellAndWait', file=str(told), seconds=0.2))
    cfg.dump(tmp_path / 'search.py')
    command = [sys.executable, ROOT / 'tools/search.py', tmp_path / 'search.py', cfg.load_from]
    command += ['--work-dir', cfg.work_dir, '--workers', '2', '--no-report']
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    pids = wait_for(told, 8)
    process.kill()
    process.wait()
    wait_for_the_end_of(pids)
    before = len(told.read_text().split())
    done = subprocess.run([*command, '--resume'], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (Path(cfg.work_dir) / 'search_history.jsonl').read_text() == expected
    assert len(told.read_text().split()) - before < 18  # what was scored is not done again


@pytest.mark.full
@pytest.mark.parametrize(
    'number', [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_ends_it_with_a_line(config, tmp_path, number):
    told = tmp_path / 'told'
    cfg = config('stopped', None, dict(type='TellAndWait', file=str(told), seconds=0.2))
    cfg.dump(tmp_path / 'search.py')
    command = [sys.executable, ROOT / 'tools/search.py', tmp_path / 'search.py', cfg.load_from]
    command += ['--work-dir', cfg.work_dir, '--workers', '2', '--no-report']
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    wait_for(told, 6)
    os.killpg(process.pid, number)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 75, output[-3000:]
    assert 'Traceback' not in output, output[-3000:]
    assert 'candidates are scored and on disk, continue with --resume' in output


def refused(capsys, *arguments) -> str:
    assert call_tool('search.py', *arguments) == 2
    return capsys.readouterr().err


def test_without_ray_the_extra_is_named(config, tmp_path, monkeypatch, capsys):
    cfg = config('none')
    cfg.dump(tmp_path / 'search.py')
    monkeypatch.setitem(sys.modules, 'ray', None)
    command = (tmp_path / 'search.py', cfg.load_from, '--check-only', '--workers', 2)
    assert "val_cfg.ray needs Ray: pip install 'tas-lora[ray]'" in refused(capsys, *command)


@pytest.mark.parametrize('address', ['here', '127.0.0.1:99999999', 'a.invalid:6379', 'closed'])
def test_an_address_where_nobody_listens(config, tmp_path, capsys, address):
    if address == 'closed':
        with socket.socket() as server:
            server.bind(('127.0.0.1', 0))
            address = f'127.0.0.1:{server.getsockname()[1]}'
    cfg = config('none')
    cfg.dump(tmp_path / 'search.py')
    start = time.monotonic()
    error = refused(capsys, tmp_path / 'search.py', cfg.load_from, '--address', address)
    assert time.monotonic() - start < 30
    assert f'val_cfg.ray.address is {address!r}, where no Ray cluster listens' in error


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--workers', 0], 'val_cfg.ray.workers must be a positive integer, got 0'),
        (['--workers', 2, '--cpus-per-worker', 0], 'val_cfg.ray.cpus_per_worker must be a pos'),
        (['--workers', 3, '--gpus-per-worker', 1], 'val_cfg.ray.workers is 3: with 1 GPUs each'),
        (['--gpus-per-worker', 1.5], 'val_cfg.ray.gpus_per_worker must be a fraction up to 1, a w'),
        (['--gpus-per-worker', 'auto'], "val_cfg.ray.gpus_per_worker is 'auto', but this machine"),
        (['--cfg-options', 'val_cfg.ray=4'], 'val_cfg.ray must be a dict of'),
    ],
)
def test_options_that_make_no_sense(config, tmp_path, capsys, options, message):
    cfg = config('none')
    cfg.dump(tmp_path / 'search.py')
    command = (tmp_path / 'search.py', cfg.load_from, '--check-only', *options)
    if torch.cuda.is_available() and 'GPU' in message:
        pytest.skip('this machine has a GPU')
    assert message in refused(capsys, *command)


@pytest.mark.parametrize(
    ('resource', 'share', 'expected'),
    [(2, 0.6, 2), (2, 0.5, 4), (1, 1 / 3, 3), (8, 3, 2), (2, 8, 0), (0.5, 0.5, 0)],
)
def test_a_fraction_of_a_gpu_lies_on_one(resource, share, expected):
    assert _workers_on(resource, share) == expected


STAND_INS = {
    'srun': 'while [ "$1" != bash ]; do shift; done\nexec "$@"',
    'scontrol': 'hostname',
}


@pytest.mark.full
def test_under_slurm_the_first_machine_searches(config, tmp_path):
    """With stand-ins for Slurm's commands: one machine, Ray's own processes."""
    expected, _ = search(config('alone'))
    for name, does in STAND_INS.items():
        (tmp_path / name).write_text(f'#!/usr/bin/env bash\n{does}\n')
        (tmp_path / name).chmod(0o755)
    cfg = config('slurm')
    cfg.dump(tmp_path / 'search.py')
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        port = server.getsockname()[1]
    slurm = dict(SLURM_JOB_NODELIST='here', SLURM_JOB_NUM_NODES='1', SLURM_CPUS_PER_TASK='2')
    path = f'{tmp_path}{os.pathsep}{os.environ["PATH"]}'
    environment = os.environ | slurm | dict(PATH=path, PYTHON=sys.executable, PORT=str(port))
    command = [ROOT / 'tools' / 'slurm_search.sh', 'gpu', 'name', tmp_path / 'search.py']
    command += [cfg.load_from, cfg.work_dir, '--no-report']
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if 'Ray is already started' in done.stderr + done.stdout:
        pytest.skip('another Ray runs on this machine')
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (Path(cfg.work_dir) / 'search_history.jsonl').read_text() == expected


@pytest.mark.parametrize(
    ('needed', 'total', 'expected'),
    [(60e9, 80e9, 1), (90e9, 80e9, 1), (8e9, 80e9, 8), (17e9, 80e9, 4), (1e9, 16e9, 8)],
)
def test_workers_of_a_gpu_fit_with_a_tenth_to_spare(needed, total, expected):
    count = workers_per_gpu(needed, total)
    assert count == expected
    assert count == 1 or count * (needed + 0.6e9) <= 0.9 * total
