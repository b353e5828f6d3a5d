"""One run, one folder: a second one is refused by name, and what a dead one left is taken over."""

import json
import os
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from conftest import ROOT, call_tool

from tas_lora import UserError, apis
from tas_lora.work_lock import LOCK, RECORD, check_free, held

HOLDER = """
import os, sys, time
from tas_lora.work_lock import held
with held(sys.argv[1]):
    if sys.argv[2:] and os.fork() == 0:  # as a loader's worker, which outlives it for a while
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
    with holder(tmp_path / 'work') as first:
        for take in (
            lambda: held(tmp_path / 'work').__enter__(),
            lambda: check_free(tmp_path / 'work'),
        ):
            with pytest.raises(UserError) as error:
                take()
            text = str(error.value)
            assert f'is in use by process {first.pid} on {socket.gethostname()}, started 2' in text
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


def test_two_exports_by_the_tool(tmp_path, capsys):
    """Refused before anything is read."""
    with holder(tmp_path / 'out'):
        files = ('no_config.py', 'no_checkpoint.pth', '--subnet', 'no.json')
        assert call_tool('export.py', *files, '--out', tmp_path / 'out') == 2
    assert 'is in use by process' in capsys.readouterr().err
