"""The check on a GPU: its parts are kept and continued, its comparisons and counts are right."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import ROOT, call_tool
from mmengine.config import Config
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent

from tas_lora.gpu_check import PARTS, Setting, parity, run_parts, runs, speed, training, write_page
from tas_lora.gpu_check.runs import MACHINE, Part, SkippedError, describe_machine


def machine(setting: Setting) -> dict:
    return dict(device='CPU', driver=None, commit='abc', quick=setting.quick)


def work(setting: Setting) -> dict:
    with (Path(setting.folder) / 'calls.txt').open('a') as file:
        file.write('x')
    target = dict(name='speed', target='<= 2', measured=3.0, met=False)
    return dict(value=1, targets=[target])


def fail(setting: Setting) -> dict:
    raise ValueError('no such kernel')


def crash(setting: Setting) -> dict:
    os._exit(3)


def sleep(setting: Setting) -> dict:
    time.sleep(600)


def skip(setting: Setting) -> dict:
    raise SkippedError('no data here')


FAKE = {
    part.name: part
    for part in (
        Part(MACHINE, 'Machine', machine, 60),
        Part('fail', 'Fails', fail, 60),
        Part('crash', 'Crashes', crash, 60),
        Part('sleep', 'Takes too long', sleep, 0.25),
        Part('skip', 'Has no data', skip, 60),
        Part('work', 'Works', work, 60),
    )
}


def run(folder, quick: bool = True, minutes: float = 20, parts=FAKE) -> dict:
    setting = Setting('cpu', quick, str(folder))
    return run_parts(parts, setting, minutes, lambda text: None, lambda records: None)


def calls(folder) -> int:
    return len((folder / 'calls.txt').read_text())


def test_one_part_that_fails_does_not_stop_the_others(tmp_path):
    records = run(tmp_path)
    expected = ['done', 'failed', 'failed', 'timeout', 'skipped', 'done']
    assert [record['status'] for record in records.values()] == expected
    assert records['fail']['reason'] == 'ValueError: no such kernel'
    assert 'Traceback' in (tmp_path / 'fail.log').read_text()
    assert records['crash']['reason'] == 'exit code 3'
    assert records['sleep']['reason'] == 'it was ended after 1 s'
    assert records['skip']['reason'] == 'no data here'
    assert records['work']['figures']['value'] == 1
    assert json.loads((tmp_path / 'work.json').read_text()) == records['work']


def test_what_is_done_is_not_repeated_unless_something_differs(tmp_path):
    parts = {name: FAKE[name] for name in (MACHINE, 'work')}
    first = run(tmp_path, parts=parts)
    assert run(tmp_path, parts=parts)['work'] == first['work']
    assert calls(tmp_path) == 1
    run(tmp_path, quick=False, parts=parts)  # other sizes
    assert calls(tmp_path) == 2
    record = json.loads((tmp_path / 'work.json').read_text())
    record['key']['torch'] = '1.0'
    (tmp_path / 'work.json').write_text(json.dumps(record))
    run(tmp_path, quick=False, parts=parts)
    assert calls(tmp_path) == 3
    (tmp_path / 'work.json').write_text('{')  # a disk that was full
    run(tmp_path, quick=False, parts=parts)
    assert calls(tmp_path) == 4


@pytest.mark.skipif(not shutil.which('git'), reason='needs git')
def test_a_record_depends_on_code_and_configs_but_not_on_the_page(tmp_path, monkeypatch):
    files = [tmp_path / name for name in ('docs/gpu.md', 'tas_lora/a.py', 'configs/b.py')]
    for file in files:
        file.parent.mkdir()
        file.write_text('')
    for command in ('init -q', 'add .', '-c user.name=a -c user.email=b commit -qm c'):
        subprocess.run(['git', '-C', str(tmp_path), *command.split()], check=True)
    monkeypatch.setattr(runs, '_SOURCES', (tmp_path / 'tas_lora', tmp_path / 'configs'))
    parts = {MACHINE: Part(MACHINE, 'Machine', describe_machine, 60), 'work': FAKE['work']}
    run(tmp_path, parts=parts)
    commits = [describe_machine(Setting('cpu', True, str(tmp_path)))['commit']]
    for number, (file, expected) in enumerate(zip(files, (1, 2, 3), strict=True)):
        file.write_text(f'{number}')
        run(tmp_path, parts=parts)
        assert calls(tmp_path) == expected, file
    commits.append(describe_machine(Setting('cpu', True, str(tmp_path)))['commit'])
    assert commits[1] == f'{commits[0]}-dirty'


def test_no_part_is_begun_when_the_time_is_over(tmp_path):
    records = run(tmp_path, minutes=1e-6, parts={n: FAKE[n] for n in (MACHINE, 'work')})
    assert [record['status'] for record in records.values()] == ['done', 'no time']
    assert 'run it again' in records['work']['reason']
    assert not (tmp_path / 'work.json').exists()


def test_a_part_is_not_begun_with_clearly_less_than_it_needs(tmp_path):
    parts = {n: FAKE[n] for n in (MACHINE, 'work')}
    parts |= dict(long=Part('long', 'Needs minutes', work, 600), short=FAKE['skip'])
    records = run(tmp_path, minutes=2, parts=parts)  # a fifth of the long one's limit
    statuses = [record['status'] for record in records.values()]
    assert statuses == ['done', 'done', 'no time', 'skipped']
    assert calls(tmp_path) == 1


INTERRUPTED = """
import os, subprocess, sys, time
from pathlib import Path

from tas_lora import cli
from tas_lora.gpu_check import Setting, run_parts
from tas_lora.gpu_check.runs import MACHINE, Part

FOLDER = Path(__file__).parent

def machine(setting):
    return dict(device='CPU', driver=None)

def work(setting):
    with (FOLDER / 'calls.txt').open('a') as file:
        file.write('x')
    return dict(value=1)

def slow(setting):
    if (FOLDER / 'pids').exists():
        return dict(value=2)
    child = subprocess.Popen(['sleep', '600'])
    (FOLDER / 'pids.new').write_text(f'{os.getpid()} {child.pid}')
    (FOLDER / 'pids.new').rename(FOLDER / 'pids')
    time.sleep(600)

def main():
    parts = [Part(MACHINE, '', machine, 60), Part('work', '', work, 60), Part('slow', '', slow, 60)]
    setting = Setting('cpu', True, str(FOLDER))
    run_parts({part.name: part for part in parts}, setting, 9, cli.say, lambda records: None)

if __name__ == '__main__':
    cli.run(main)
"""


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended may wait for its parent."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except FileNotFoundError:
        return False


def wait_until(condition, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='looks into /proc')
@pytest.mark.parametrize(
    ('number', 'code'),
    [
        (signal.SIGTERM, 75),
        pytest.param(signal.SIGINT, 75, marks=pytest.mark.full),
        (signal.SIGKILL, -9),
    ],
)
def test_a_check_that_is_stopped_leaves_no_process_and_continues(tmp_path, number, code):
    script, pids = tmp_path / 'check.py', tmp_path / 'pids'
    script.write_text(INTERRUPTED)
    environment = os.environ | dict(PYTHONPATH=str(ROOT), CUDA_VISIBLE_DEVICES='')
    start = partial(subprocess.Popen, [sys.executable, str(script)], env=environment)
    with start() as process:
        wait_until(pids.exists)
        numbers = [int(text) for text in pids.read_text().split()]
        assert all(map(is_alive, numbers))
        process.send_signal(number)
        assert process.wait(120) == code
    wait_until(lambda: not any(map(is_alive, numbers)), 60)
    assert json.loads((tmp_path / 'work.json').read_text())['status'] == 'done'
    assert not (tmp_path / 'slow.json').exists()
    with start() as process:
        assert process.wait(300) == 0
    assert calls(tmp_path) == 1
    assert json.loads((tmp_path / 'slow.json').read_text())['figures'] == dict(value=2)


def test_half_of_the_digits_are_not_taken_for_all(tmp_path, monkeypatch):
    """A run that is killed while it writes them; the next one writes them anew."""
    setting, root = Setting('cpu', True, str(tmp_path)), tmp_path / 'scratch' / 'digits_data'
    run_path = training.runpy.run_path

    def die(*args, **kwargs):
        run_path(*args, **kwargs)
        next(Path(sys.argv[2]).iterdir()).unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(training.runpy, 'run_path', die)
    with pytest.raises(KeyboardInterrupt):
        training._digits('moLE', setting, 'test')
    assert not root.exists()
    monkeypatch.setattr(training.runpy, 'run_path', run_path)
    training._digits('moLE', setting, 'test')
    assert len(list(root.iterdir())) == 4


def test_after_each_part_the_records_so_far_are_kept(tmp_path):
    parts, kept = {n: FAKE[n] for n in (MACHINE, 'fail', 'work')}, []
    setting = Setting('cpu', True, str(tmp_path))
    run_parts(parts, setting, 2, lambda text: None, lambda records: kept.append(list(records)))
    assert kept == [[MACHINE], [MACHINE, 'fail'], [MACHINE, 'fail', 'work']]


def test_what_is_expected_of_all_parts_fits_into_nine_minutes():
    """The most important figure comes first."""
    assert list(PARTS)[:3] == [MACHINE, 'speed_t_256', 'parity']
    assert sum(part.limit for part in PARTS.values()) / 2 <= 9 * 60


def test_the_page_tells_what_was_missed_and_what_failed(tmp_path):
    write_page(tmp_path / 'gpu.md', FAKE, run(tmp_path))
    page = (tmp_path / 'gpu.md').read_text()
    assert '| speed | <= 2 | 3 | **no** |' in page
    assert '| fail | Fails | failed |' in page
    assert 'ValueError: no such kernel' in page
    assert 'the figures below mean nothing' in page
    assert 'CPU, driver None' in page


def test_bounds_by_hand():
    """14 roundings a block: 196 in 14 blocks, the root of which is 14."""
    assert parity.rounding_bound(torch.bfloat16, 14, backward=False) == 14 / 256
    assert parity.rounding_bound(torch.float16, 14, backward=False) == 14 / 2048
    assert parity.rounding_bound(torch.bfloat16, 14, True) == pytest.approx(14 / 256 * 3**0.5)


def test_differences_by_hand():
    found, expected = torch.tensor([1.0, 2.0, 5.0]), torch.tensor([1.0, 2.0, 4.0])
    assert parity.largest_difference(found, expected) == 0.25
    assert parity.largest_difference(found, expected, floor=10.0) == pytest.approx(0.1)
    pairs = [found, torch.zeros(1)], [expected, torch.full((1,), 2.0)]
    assert parity.norm_difference(*pairs) == pytest.approx((5 / 25) ** 0.5)


def test_parity_of_a_size_and_what_a_wrong_gradient_does(monkeypatch):
    setting = Setting('cpu', True, '')
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', True)
    for row in parity.compare('t', setting):
        for what in ('logits', 'gradients'):
            assert 0 < row[what] <= row['bounds'][what], row['dtype']
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
    gradient = torch.tensor([1.0, 2.0])
    exact = dict(logits=torch.ones(2), gradients=dict(one=gradient, other=gradient))
    wrong = exact | dict(gradients=dict(one=gradient, other=gradient * 1.001))
    row = parity._errors(wrong, exact, torch.float32, 2)
    assert (row['worst'], row['logits']) == ('other', 0)
    assert row['gradients'] > row['bounds']['gradients']


def test_operations_are_counted():
    a = torch.randn(4, 4)
    setting = Setting('cpu', True, '')
    assert speed._count(lambda: torch.mm(a, a), setting) == 1
    assert speed._count(lambda: torch.mm(a, a).exp(), setting) == 2
    assert speed._count(lambda: a.T.reshape(2, 8)[0] + 1, setting) == 2  # a copy, and a sum


def test_after_the_memory_ran_out_nothing_of_before_is_held(monkeypatch):
    """Else static and ours, built anew, would have no more room than all had together."""
    held, measure = [], speed.benchmark.measure_training

    def run_out_once(models, batch, *options, **more):
        if not held:
            held.extend(weakref.ref(value) for value in (batch[0], *models.values()))
            raise torch.OutOfMemoryError('CUDA out of memory')
        assert list(models) == ['static', 'ours']
        assert [reference() for reference in held] == [None] * len(held)
        return measure(models, batch, *options, **more)

    monkeypatch.setattr(speed.benchmark, 'measure_training', run_out_once)
    found = speed.size_speed('t', 256, ('static', 'ours', 'finetune'), Setting('cpu', True, ''))
    assert list(found['batches'][2]) == ['static', 'ours']


def test_a_contestant_without_room_is_left_out(monkeypatch):
    peak, names = speed._peak, iter(('static', 'ours', 'finetune'))

    def run_out(step, setting):
        if next(names) == 'finetune':
            raise torch.OutOfMemoryError('CUDA out of memory')
        return peak(step, setting)

    monkeypatch.setattr(speed, '_peak', run_out)
    found = speed.size_speed('t', 256, ('static', 'ours', 'finetune'), Setting('cpu', True, ''))
    assert found['batches'][2]['finetune'] == dict(out_of_memory=True)
    assert found['batches'][2]['ours']['train']['vs_static']['median'] > 0


def test_kernels_are_counted_without_copies_and_annotations():
    def event(name: str, device: DeviceType = DeviceType.CUDA, is_mark: bool = False):
        return FunctionEvent(0, name, 0, 0, 1, device_type=device, is_user_annotation=is_mark)

    others = [
        event('Memcpy HtoD (Pageable -> Device)'),
        event('Memset (Device)'),
        event('Optimizer.step#AdamW.step', is_mark=True),
        event('aten::mm', DeviceType.CPU),
    ]
    assert speed._kernels([*others, event('gemm'), event('gelu')]) == 2
    with pytest.raises(RuntimeError, match='sees no kernel'):
        speed._kernels(others)


def test_fashion_mnist_is_found_zipped_or_not(tmp_path):
    setting = Setting('cpu', True, str(tmp_path), str(tmp_path / 'data'))
    with pytest.raises(SkippedError, match='--fashion'):
        training._fashion_folder(setting)
    (tmp_path / 'data').mkdir()
    for name in training.FILES:
        (tmp_path / 'data' / f'{name}.gz').write_bytes(gzip.compress(b'images'))
    folder = training._fashion_folder(setting)
    assert [(folder / name).read_bytes() for name in training.FILES] == [b'images'] * 4
    for name in training.FILES:
        (tmp_path / 'data' / name).write_bytes(b'')
    assert training._fashion_folder(setting) == tmp_path / 'data'


def test_a_router_that_was_not_trained_is_noticed(tmp_path):
    first = {'router.a': torch.zeros(2), 'head.a': torch.zeros(2)}
    cfg = Config(dict(work_dir=str(tmp_path)))
    torch.save(dict(state_dict=first), tmp_path / 'epoch_1.pth')
    torch.save(dict(state_dict=first | {'head.a': torch.ones(2)}), tmp_path / 'epoch_2.pth')
    with pytest.raises(AssertionError, match='router'):
        training._check_router_moved(cfg)
    torch.save(dict(state_dict=first | {'router.a': torch.ones(2)}), tmp_path / 'epoch_2.pth')
    training._check_router_moved(cfg)


@pytest.mark.skipif(torch.cuda.is_available(), reason='this machine has a GPU')
def test_a_gpu_is_asked_for_where_there_is_none(capsys):
    assert call_tool('gpu_check.py') == 2
    assert 'torch finds no GPU' in capsys.readouterr().err


def test_gpus_are_hidden_before_torch_is_imported(tmp_path):
    """A torch that tells what it sees takes the place of the real one."""
    (tmp_path / 'torch.py').write_text('import os; exit(os.environ["CUDA_VISIBLE_DEVICES"] or "-")')
    places = dict(PYTHONPATH=str(tmp_path), CUDA_VISIBLE_DEVICES='0')
    for option, expected in (('--device=cpu', '-'), ('--device=cuda', '0')):
        command = [sys.executable, str(ROOT / 'tools/gpu_check.py'), option]
        done = subprocess.run(command, env=os.environ | places, capture_output=True, text=True)
        assert done.stderr.strip() == expected


def test_the_tool_runs_parts_and_continues(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')  # so that it is as before after the test
    options = ('--device', 'cpu', '--quick', '--out', tmp_path, '--parts', 'rates', 'loading')
    assert call_tool('gpu_check.py', *options) == 0
    records = {name: json.loads((tmp_path / f'{name}.json').read_text()) for name in options[-2:]}
    assert set(records['rates']['figures']['rates']) == {'float32', 'bfloat16', 'float16'}
    assert records['loading']['figures']['images_per_core_second']['train'] > 0
    capsys.readouterr()
    assert call_tool('gpu_check.py', *options) == 0
    assert 'rates: done in an earlier run' in capsys.readouterr().out


@pytest.mark.full
@pytest.mark.skipif(torch.cuda.is_available(), reason='MMEngine has chosen the GPU already')
@pytest.mark.parametrize('name', ['launches', 'ddp', 'resume', 'float16', 'syncs'])
def test_parts_on_a_cpu(tmp_path, name):
    """Each in its own process, as by the tool; `make gpu-quick` runs all."""
    parts = {part: PARTS[part] for part in (MACHINE, name)}
    record = run(tmp_path, parts=parts)[name]
    if name == 'syncs':
        assert record['status'] == 'skipped', record
        return
    assert record['status'] == 'done', record
    for target in record['figures']['targets']:
        assert target['met'] in ((True,) if name != 'launches' else (None,)), target
