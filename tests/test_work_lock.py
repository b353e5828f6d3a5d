"""One run, one folder: a second one is refused by name, and what a dead one left is taken over."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
import torch
from conftest import ROOT, call_tool
from filelock import FileLock

from tas_lora import UserError, apis
from tas_lora.ranks import is_first_rank
from tas_lora.work_lock import LOCK, RECORD, check_free, held

HOLDER = """
import os, sys, time
from tas_lora.work_lock import held
with held(sys.argv[1]):
    # As a loader's worker, which outlives it for a while.
    if sys.argv[2:] and sys.argv[2].isdigit() and os.fork() == 0:
        time.sleep(float(sys.argv[2]))
        os._exit(0)
    print('held', flush=True)
    time.sleep(600)
"""


@contextmanager
def holder(folder, *arguments: str):
    """Another process that holds the lock of a folder."""
    command = [sys.executable, '-c', HOLDER, str(folder), *arguments]
    environment = os.environ | dict(PYTHONPATH=str(ROOT))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout.readline() == 'held\n'
        try:
            yield process
        finally:
            process.kill()


def refused(job, *arguments) -> None:
    with pytest.raises(UserError, match='is in use by '):
        job(*arguments)


def test_the_second_is_refused_by_name(tmp_path):
    with holder(tmp_path / 'work', 'x' * 500) as first:
        for take in (
            lambda: held(tmp_path / 'work').__enter__(),
            lambda: check_free(tmp_path / 'work'),
        ):
            with pytest.raises(UserError) as error:
                take()
            text = str(error.value)
            assert f'is in use by process {first.pid} on {socket.gethostname()}, started 2' in text
            assert ': -c ' in text  # its command, shortened
            assert len(text) < 500
            assert 'choose another folder' in text
            assert '\n' not in text
        record = json.loads((tmp_path / 'work' / RECORD).read_text())
        assert record['process'] == first.pid
    with held(tmp_path / 'other') as note:
        assert note == ''
    assert list((tmp_path / 'other').iterdir()) == []


@pytest.mark.parametrize('children', [(), ('2',)])
def test_what_a_dead_process_left_is_taken_over_with_a_line(tmp_path, children):
    with holder(tmp_path, *children) as first:
        first.kill()
        first.wait()
        with held(tmp_path) as note:
            assert f'process {first.pid} on {socket.gethostname()}' in note
            assert 'ended without releasing its lock. Taken over.' in note
        with held(tmp_path) as note:
            assert note == ''


def test_of_another_machine_it_is_said_what_is_not_known(tmp_path):
    """Its process cannot be looked up; the file system may not share locks."""
    record = dict(host='node7', process=os.getpid(), started='2026-01-01 10:00:00', created=0)
    (tmp_path / RECORD).write_text(json.dumps(record))
    with held(tmp_path) as note:
        assert 'process' in note
        assert 'on node7, started 2026-01-01 10:00:00' in note
        assert 'make sure that it runs no more' in note
        (tmp_path / RECORD).write_text(json.dumps(record))
        with pytest.raises(UserError, match=rf'if it runs no more, delete \S+{LOCK}'):
            check_free(tmp_path)


@pytest.mark.parametrize('text', ['', '[]', '{"host": 3}', '{"process": "x", "host": null}'])
def test_a_record_of_any_content_is_no_traceback(tmp_path, text):
    (tmp_path / RECORD).write_text(text)
    with held(tmp_path):
        (tmp_path / RECORD).write_text(text)
        refused(check_free, tmp_path)


def test_a_removed_folder_hides_no_error(tmp_path):
    def run():
        with held(tmp_path / 'work'):
            shutil.rmtree(tmp_path / 'work')
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()


def files_in(folder) -> dict:
    return {path: path.stat().st_mtime_ns for path in folder.rglob('*')}


def test_two_trainings(digits_config, tmp_path, caplog):
    cfg = digits_config('supernet', images=32)
    cfg.train_cfg.max_epochs = 1
    with holder(cfg.work_dir):
        before = files_in(tmp_path)
        refused(apis.train, cfg)
        refused(apis.check_training, cfg)
        assert files_in(tmp_path) == before  # not even a log
    apis.check_training(cfg)  # tells by a file who holds it, and holds nothing itself
    assert 'ended without releasing' not in caplog.text
    with holder(cfg.work_dir) as first:
        first.kill()
        first.wait()
    runner = apis.train(cfg)
    assert runner.iter > 0
    log = next((tmp_path / 'supernet').glob('*/*.log'))
    logs = [path.read_text() for path in (tmp_path / 'supernet').glob('*/*.log')]
    assert any(f'process {first.pid} on' in text for text in logs), log
    assert not (tmp_path / 'supernet' / RECORD).exists()


def test_the_other_ranks_hold_nothing(digits_config, monkeypatch):
    cfg = digits_config('supernet')
    cfg.launcher = 'pytorch'
    with holder(cfg.work_dir):
        monkeypatch.setenv('RANK', '1')
        with apis.work_dir_of(cfg) as note:
            assert note == ''
        monkeypatch.setenv('RANK', '0')
        refused(lambda: apis.work_dir_of(cfg).__enter__())


def test_two_searches(digits_config, tmp_path):
    cfg = digits_config('search')
    cfg.val_cfg.resume = True
    weights = tmp_path / 'weights.pth'
    torch.save(dict(state_dict=apis.load_supernet(cfg).state_dict()), weights)
    with holder(cfg.work_dir):
        before = files_in(tmp_path)
        refused(apis.search, cfg, weights)
        refused(apis.check_search, cfg, weights)
        assert files_in(tmp_path) == before


def test_who_only_looks_refuses_nobody(tmp_path):
    """The lock is taken to see whether it is free; another look, or a start, waits for that."""
    for take in (check_free, lambda folder: held(folder).__enter__()):
        (tmp_path / LOCK).touch()
        glance = FileLock(tmp_path / LOCK, thread_local=False)
        glance.acquire()
        release = threading.Timer(0.2, glance.release)
        release.start()
        take(tmp_path)
        release.join()


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / 'file').write_text('x')
    for path in (tmp_path / 'file', tmp_path / 'file' / 'work'):
        for take in (check_free, lambda folder: held(folder).__enter__()):
            with pytest.raises(UserError, match=rf'{path} cannot be a folder: \S+/file is a file'):
                take(path)


def test_one_folder_of_checkpoints(digits_config, tmp_path):
    """Of two work directories of one name, whose checkpoints go to the same place."""
    configs = [digits_config('supernet') for _ in 'ab']
    for cfg, parent in zip(configs, 'ab', strict=True):
        cfg.work_dir = str(tmp_path / parent / 'run')
        cfg.default_hooks.checkpoint.out_dir = str(tmp_path / 'disk')
    with apis.work_dir_of(configs[0]), holder(tmp_path / 'a' / 'other'):
        assert (tmp_path / 'disk' / 'run' / LOCK).exists()
    with holder(tmp_path / 'disk' / 'run'):
        refused(apis.train, configs[1])
        refused(apis.check_training, configs[1])
    configs[1].default_hooks.checkpoint.out_dir = 's3://bucket/x'
    with apis.work_dir_of(configs[1]):
        assert [path.name for path in tmp_path.iterdir() if ':' in path.name] == []


def test_without_a_work_directory_no_folder_is_asked(digits_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = digits_config('supernet', images=32)
    cfg.work_dir = None
    with holder(tmp_path):
        apis.check_training(cfg)


@pytest.mark.parametrize(
    ('launcher', 'name'),
    [('pytorch', 'RANK'), ('slurm', 'SLURM_PROCID'), ('mpi', 'OMPI_COMM_WORLD_RANK')],
)
def test_the_first_rank_speaks(monkeypatch, capsys, launcher, name):
    """Of each launcher; a job whose processes are runs of their own has several first ones."""
    for variable in ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK'):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, '1')
    assert is_first_rank('none')
    assert not is_first_rank(launcher)
    monkeypatch.setenv('RANK', '1' if launcher == 'pytorch' else '0')
    for chosen, said in ((launcher, False), ('none', launcher != 'pytorch')):
        assert call_tool('train.py', 'no_config.py', '--launcher', chosen) == 2
        assert ('no_config.py' in capsys.readouterr().err) == said
        monkeypatch.setenv('RANK', '1' if launcher == 'pytorch' else '0')


def test_two_exports_by_the_tool(tmp_path, capsys):
    """Refused before anything is read."""
    with holder(tmp_path / 'out'):
        files = ('no_config.py', 'no_checkpoint.pth', '--subnet', 'no.json')
        assert call_tool('export.py', *files, '--out', tmp_path / 'out') == 2
    assert 'is in use by process' in capsys.readouterr().err
