"""Faults by the table: each is done to real runs of the tools; what was lost is counted.

make soak      (20 to 40 minutes on two cores; exits with 1 if anything was lost)
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.table import Table

from tas_lora.atomic_files import is_whole
from tas_lora.engine.runner.run_files import newest_whole
from tas_lora.errors import STOPPED
from tas_lora.models.safe_load import read_checkpoint

ROOT = Path(__file__).resolve().parents[1]
EPOCHS, LAST = 5, 'epoch_5.pth'
DATA_ROOT = 'train_dataloader.dataset.dataset.dataset.data_root'
PROGRESS = re.compile(r'Epoch\(train\)\s+\[(\d+)\]')
CONFIG = """
_base_ = '{root}/configs/digits_{stage}.py'
custom_imports = dict(imports=['faults'])
load_from = None
train_cfg = dict(max_epochs={epochs}, val_interval=2)
train_dataloader = dict(num_workers=1, dataset=dict(times=2))
default_hooks = dict(logger=dict(interval=1))
"""
SEARCH = """
_base_ = '{root}/configs/digits_search.py'
val_cfg = dict(
    evolution=dict(population=20, generations=10),
    race=dict(first=60, strata=2, controls=4),
    baseline=True,
)
"""
SLOW = """
custom_hooks = [
    dict(type='tas_lora.MoLEHook', router_warmup_epochs=2),
    dict(type='tas_lora.MoLEStatsHook'),
    dict(type='SlowDisk', seconds=20),
]
"""
NAN_LOSS = """
custom_hooks = [dict(type='tas_lora.MoLEHook'), dict(type='SpoilInputs', iterations=[99])]
"""
console = Console(highlight=False)


class Run:
    """A training by the command a user types, in a folder of its own."""

    def __init__(self, folder: Path, stage: str = 'moLE', processes: int = 1, extra: str = ''):
        self.folder, self.processes = folder, processes
        self.work_dir = folder / 'work'
        self.folder.mkdir(parents=True)
        self.config = folder / 'config.py'
        text = CONFIG.format(root=ROOT, stage=stage, epochs=EPOCHS)
        self.config.write_text(text + extra)

    def command(self, *options: str) -> list:
        """The command line, going on from what is there."""
        if self.processes == 1:
            start = [sys.executable, '-u', ROOT / 'tools/train.py', self.config]
        else:
            start = [ROOT / 'tools/dist_train.sh', self.config, str(self.processes)]
        changes = ['--cfg-options', 'train_cfg.allow_changes=True', *options]
        return [*start, '--work-dir', self.work_dir, '--resume', *changes]

    def start(self, *options: str, **kwargs) -> subprocess.Popen:
        """Start or go on."""
        return subprocess.Popen(
            self.command(*options),
            **dict(stdout=subprocess.PIPE) | kwargs,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(),
        )

    def go(self, *options: str, **kwargs) -> tuple[int, str]:
        """Run to its end; returns exit code and output."""
        process = self.start(*options, **kwargs)
        output = process.communicate()[0]
        return process.returncode, output

    def result(self) -> dict:
        """What the finished training left: weights, averages, optimizers, schedules."""
        checkpoint = read_checkpoint(self.work_dir / LAST)
        keys = ('state_dict', 'optimizer', 'param_schedulers')
        return {key: checkpoint[key] for key in keys}


def same(a, b) -> bool:
    """Whether nested values are equal, tensors bit by bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


class Soak:
    """All faults, on runs compared with undisturbed ones."""

    def __init__(self, folder: Path, seed: int, times: int):
        self.folder, self.times, self.rng = folder, times, random.Random(seed)
        self.undisturbed: dict = {}
        self.rows: list[tuple[str, int, int, list[str]]] = []

    def expected(self, stage: str, processes: int = 1) -> dict:
        """Result of a run that nothing happens to."""
        key = (stage, processes)
        if key not in self.undisturbed:
            run = Run(self.folder / f'undisturbed_{stage}_{processes}', stage, processes)
            code, output = run.go()
            assert code == 0, output[-3000:]
            self.undisturbed[key] = run.result()
        return self.undisturbed[key]

    def report(self, fault: str, times: int, lost: list[str]) -> None:
        """One line of the table."""
        self.rows.append((fault, times, times - len(lost), lost))
        console.print(f'{fault}: {times} times, survived {times - len(lost)}, lost {len(lost)}')
        for text in lost:
            console.print(f'    {text}', style='red', markup=False)

    def signalled(self, number: signal.Signals, stage: str, processes: int = 1) -> None:
        """Signals at random moments until the training is through."""
        run = Run(self.folder / f'{number.name}_{stage}_{processes}', stage, processes)
        sent, lost = 0, []
        for _ in range(10 * self.times):
            if (run.work_dir / LAST).exists():
                break
            process = run.start()
            epoch = wait_for_training(process)
            time.sleep(self.rng.uniform(0, 2))
            if sent < self.times and process.poll() is None:
                sent += 1
                signal_all(process, number)
            output = process.communicate()[0]
            epoch = max([epoch, *map(int, PROGRESS.findall(output))])
            lost += self.after_signal(run, number, process.returncode, output, epoch)
        if not (run.work_dir / LAST).exists():
            lost.append('the training did not come to its end')
        elif not same(self.expected(stage, processes), run.result()):
            lost.append('the weights differ from those of an undisturbed run')
        label = f'{number.name}, {stage}' + (f', {processes} processes' * (processes > 1))
        self.report(label, sent, lost)

    @staticmethod
    def after_signal(run: Run, number, code: int, output: str, epoch: int) -> list[str]:
        """What a stopped run has lost."""
        if code == 0:
            return []
        if number is signal.SIGKILL:
            newest = newest_whole(run.work_dir)
            saved = read_checkpoint(newest)['meta']['epoch'] if newest else 0
            return [f'epoch {epoch} was begun, {saved} saved'] if saved < epoch - 1 else []
        is_saved = 'Stopped by a signal' in output
        fits = code == STOPPED if run.processes == 1 else code != 0
        return [] if is_saved and fits else [f'exit code {code}: {output[-300:]}']

    def killed_while_writing(self) -> None:
        """SIGKILL as soon as a checkpoint is being written, once one is there already."""
        run, lost, killed = Run(self.folder / 'writing'), [], 0
        run.go('train_cfg.max_epochs=1')
        for _ in range(self.times):
            before = newest_whole(run.work_dir)
            for unfinished in run.work_dir.glob('.*.tmp'):
                unfinished.unlink()
            process = run.start(stdout=subprocess.DEVNULL)
            while process.poll() is None and not list(run.work_dir.glob('.*.pth.tmp')):
                time.sleep(0.0005)
            killed += process.poll() is None
            signal_all(process)
            process.wait()
            if not is_whole(before) or newest_whole(run.work_dir) is None:
                lost.append('the checkpoint before is gone or damaged')
        run.go()
        if not same(self.expected('moLE'), run.result()):
            lost.append('the weights differ from those of an undisturbed run')
        self.report('SIGKILL while a checkpoint is written', killed, lost)

    def full_disk(self) -> None:
        """No file may grow beyond half a checkpoint, from the third epoch on."""
        run, lost = Run(self.folder / 'full'), []
        run.go('train_cfg.max_epochs=2')
        files = {path: path.read_bytes() for path in run.work_dir.glob('*.pth')}
        limit = max(map(len, files.values())) // 2
        code, output = run.go(preexec_fn=lambda: limit_files(limit))
        if code != 2 or 'cannot be written: File too large' not in output or 'Traceback' in output:
            lost.append(f'exit code {code}: {output[-300:]}')
        if any(path.exists() and path.read_bytes() != old for path, old in files.items()):
            lost.append('an older checkpoint was touched')
        run.go()
        if not same(self.expected('moLE'), run.result()):
            lost.append('the weights differ from those of an undisturbed run')
        self.report('full disk', 1, lost)

    def damaged(self, name: str, damage: Callable[[Path], None]) -> None:
        """The newest checkpoint is damaged, then the training resumes."""
        lost = []
        for number in range(self.times):
            run = Run(self.folder / f'{name}_{number}'.replace(' ', '_'))
            run.go('train_cfg.max_epochs=3')
            damage(run.work_dir)
            code, output = run.go()
            if code != 0:
                lost.append(f'exit code {code}: {output[-300:]}')
            elif not same(self.expected('moLE'), run.result()):
                lost.append('the weights differ from those of an undisturbed run')
        self.report(name, self.times, lost)

    def cut(self, work_dir: Path) -> None:
        """Cut the newest checkpoint short."""
        content = (work_dir / 'epoch_3.pth').read_bytes()
        (work_dir / 'epoch_3.pth').write_bytes(content[: self.rng.randrange(len(content))])

    def flip(self, work_dir: Path) -> None:
        """Flip a bit of the newest checkpoint."""
        content = bytearray((work_dir / 'epoch_3.pth').read_bytes())
        content[self.rng.randrange(len(content) - 71)] ^= 1 << self.rng.randrange(8)
        (work_dir / 'epoch_3.pth').write_bytes(content)
        assert not is_whole(work_dir / 'epoch_3.pth')

    @staticmethod
    def forget(work_dir: Path) -> None:
        """Empty the file that names the last checkpoint."""
        (work_dir / 'last_checkpoint').write_text('')

    def nan_loss(self) -> None:
        """Stops with a message, or is left out as configured."""
        lost, run = [], Run(self.folder / 'nan_stops', extra=NAN_LOSS)
        code, output = run.go()
        if code != 2 or 'the loss is nan' not in output or 'Traceback' in output:
            lost.append(f'exit code {code}: {output[-300:]}')
        run = Run(self.folder / 'nan_is_left_out', extra=NAN_LOSS)
        code, output = run.go('train_cfg.max_bad_steps=1')
        if code != 0 or not all(v.isfinite().all() for v in run.result()['state_dict'].values()):
            lost.append(f'exit code {code}: {output[-300:]}')
        self.report('NaN loss', 2, lost)

    def killed_search(self, processes: int) -> None:
        """SIGKILL at random moments of a search, which then resumes."""
        weights = self.folder / 'undisturbed_moLE_1' / 'work' / LAST
        config, lost, killed = self.folder / 'search.py', [], 0
        config.write_text(SEARCH.format(root=ROOT))
        whole, name = self.folder / 'search_undisturbed', f'search_{processes}'

        def start(folder: str) -> subprocess.Popen:
            command = [sys.executable, ROOT / 'tools/search.py', config, weights, '--resume']
            if processes > 1:
                command += ['--workers', str(processes)]
            command += ['--work-dir', self.folder / folder, '--no-report']
            return subprocess.Popen(
                command,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment(),
            )

        if not whole.exists():
            start(whole.name).wait()
        for _ in range(self.times):
            process, history = start(name), self.folder / name / 'search_history.jsonl'
            lines = number_of_lines(history) + self.rng.randint(1, 40)
            while process.poll() is None and number_of_lines(history) < lines:
                time.sleep(0.001)
            killed += process.poll() is None
            signal_all(process)
            process.wait()
        start(name).wait()
        for file in ('search_history.jsonl', 'front.json'):
            if (whole / file).read_text() != (self.folder / name / file).read_text():
                lost.append(f'{file} differs from that of an undisturbed search')
        where = f', {processes} workers' if processes > 1 else ''
        self.report(f'SIGKILL, search{where}', killed, lost)

    def second_run(self) -> None:
        """Others start in the work directory of a training; the first is not disturbed."""
        run, lost = Run(self.folder / 'first_of_two', extra=SLOW), []
        process = run.start(stdout=subprocess.DEVNULL)
        wait_until(lambda: (run.work_dir / 'run.lock.json').exists())
        for _ in range(self.times):
            code, output = run.go()
            if code != 2 or f'in use by process {process.pid} on' not in output:
                lost.append(f'exit code {code}: {output[-300:]}')
        process.wait()
        if not same(self.expected('moLE'), run.result()):
            lost.append('the weights differ from those of an undisturbed run')
        self.report('second training in a work directory', self.times, lost)

    def added_image(self) -> None:
        """An image more in the data folder of a killed training."""
        lost = []
        for number in range(self.times):
            data = shutil.copytree('data/digits', self.folder / f'data_{number}')
            run = Run(self.folder / f'added_{number}')
            process = run.start(f'{DATA_ROOT}={data}', stdout=subprocess.DEVNULL)
            wait_until(lambda run=run: (run.work_dir / 'epoch_2.pth').exists())
            signal_all(process)
            process.wait()
            add_image(data)
            code, output = run.go(f'{DATA_ROOT}={data}', 'train_cfg.allow_changes=False')
            if code != 2 or 'training images was ' not in output:
                lost.append(f'exit code {code}: {output[-300:]}')
            run.go()  # with the images of before
            if not same(self.expected('moLE'), run.result()):
                lost.append('the weights differ from those of an undisturbed run')
        self.report('image added to the data, then resumed', self.times, lost)

    def removed(self) -> None:
        """The work directory is removed while a training runs."""
        lost = []
        for number in range(self.times):
            run = Run(self.folder / f'removed_{number}')
            process = run.start()
            wait_for_training(process)
            shutil.rmtree(run.work_dir, ignore_errors=True)
            output = process.communicate()[0]
            if process.returncode != 2 or 'Traceback' in output or run.work_dir.exists():
                lost.append(f'exit code {process.returncode}: {output[-300:]}')
            elif f'there is no folder {run.work_dir}' not in output:
                lost.append(f'it is not named: {output[-300:]}')
        self.report('work directory removed while running', self.times, lost)

    def at_start(self, number: signal.Signals) -> None:
        """A signal in the seconds from the first import to the first iterations."""
        run, lost = Run(self.folder / f'{number.name}_start', extra=SLOW), []
        for _ in range(self.times):
            process = run.start()
            wait_until(lambda process=process: handles(process.pid, number))
            time.sleep(self.rng.uniform(0, 6))
            process.send_signal(number)
            output = process.communicate()[0]
            if process.returncode != STOPPED or 'Traceback' in output:
                lost.append(f'exit code {process.returncode}: {output[-300:]}')
            elif output.count('Stopped by a signal') != 1:
                lost.append(f'not one line says so: {output[-300:]}')
        self.report(f'{number.name} at start-up', self.times, lost)

    def killed_launcher(self) -> None:
        """SIGKILL of torchrun alone; its processes end, and another run takes their place."""
        run, lost = Run(self.folder / 'launcher', processes=2), []
        for _ in range(self.times):
            process = run.start()
            wait_for_training(process)
            with suppress(psutil.NoSuchProcess):
                ranks = psutil.Process(process.pid).children(recursive=True)
                process.kill()
                process.communicate()
                if psutil.wait_procs(ranks, timeout=60)[1]:
                    lost.append('processes of a killed launcher are still there')
        code, output = run.go()
        if code != 0 or not same(self.expected('moLE', 2), run.result()):
            lost.append(f'exit code {code}, or other weights: {output[-300:]}')
        self.report('SIGKILL of the launcher alone, 2 processes', self.times, lost)

    def tests(self, fault: str, *selection: str) -> None:
        """Faults that tests of their own cover."""
        command = [sys.executable, '-m', 'pytest', '-q', '--no-header', *selection]
        output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        passed, failed = (
            sum(map(int, re.findall(rf'(\d+) {word}', output)))
            for word in ('passed', '(?:failed|error)')
        )
        self.report(fault, passed + failed, [output[-300:]] * max(failed, passed == 0))


def wait_for_training(process: subprocess.Popen) -> int:
    """Read the output until an iteration is logged; returns its epoch, 0 if there was none."""
    for line in process.stdout:
        if found := PROGRESS.search(line):
            return int(found.group(1))
    return 0


def wait_until(is_so: Callable[[], bool]) -> None:
    """Look often, for two minutes at most."""
    deadline = time.monotonic() + 120
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.01)


def handles(process: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal (Linux)."""
    with suppress(OSError):
        caught = re.search(r'SigCgt:\s*(\w+)', Path(f'/proc/{process}/status').read_text())
        return bool(int(caught.group(1), 16) >> (number - 1) & 1)
    return True  # it has ended


def add_image(data: Path) -> None:
    """Append an image to MNIST's files, whose headers have the number and the size."""
    for name, header, size in (('images-idx3', 16, 64), ('labels-idx1', 8, 1)):
        path = data / f'train-{name}-ubyte'
        content = bytearray(path.read_bytes())
        count = int.from_bytes(content[4:8], 'big')
        assert len(content) == header + count * size
        content[4:8] = (count + 1).to_bytes(4, 'big')
        path.write_bytes(content + bytes(size))


def environment() -> dict[str, str]:
    """Of the tools, which are those of this checkout."""
    path = os.pathsep.join([str(ROOT), str(ROOT / 'tests')])
    return os.environ | dict(OMP_NUM_THREADS='1', PYTHONPATH=path, PYTHON=sys.executable)


def number_of_lines(path: Path) -> int:
    """Lines of a file that may not be there yet."""
    return path.read_bytes().count(b'\n') if path.exists() else 0


def signal_all(process: subprocess.Popen, number: signal.Signals = signal.SIGKILL) -> None:
    """A signal to a process and all it has started, as the end of a job or of a machine sends."""
    try:
        family = psutil.Process(process.pid)
        family = [family, *family.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.send_signal(number)


def limit_files(size: int) -> None:
    """A full disk, for what this process starts."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def main() -> None:
    """Do all, print the table, exit with 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--times', type=int, default=3, help='of each fault')
    parser.add_argument('--out', help='JSON file for the table')
    args = parser.parse_args()
    os.chdir(ROOT)
    if not Path('data/digits').exists():
        subprocess.run([sys.executable, 'tools/prepare_digits.py'], check=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder), args.seed, args.times)
        for stage in ('supernet', 'moLE'):
            soak.signalled(signal.SIGKILL, stage)
            soak.signalled(signal.SIGTERM, stage)
        soak.signalled(signal.SIGINT, 'moLE')
        soak.signalled(signal.SIGKILL, 'moLE', processes=2)
        soak.signalled(signal.SIGTERM, 'moLE', processes=2)
        soak.killed_while_writing()
        soak.at_start(signal.SIGTERM)
        soak.at_start(signal.SIGINT)
        soak.killed_launcher()
        soak.second_run()
        soak.added_image()
        soak.removed()
        soak.killed_search(1)
        soak.killed_search(2)
        soak.full_disk()
        soak.damaged('newest checkpoint cut short', soak.cut)
        soak.damaged('bit of the newest checkpoint flipped', soak.flip)
        soak.damaged('last_checkpoint empty', soak.forget)
        soak.nan_loss()
        soak.tests('images that cannot be read', 'tests/test_bad_data.py', '-k', 'image')
        soak.tests('candidate out of memory', 'tests/test_bad_data.py', '-k', 'out_of_memory')
        soak.tests('worker of a search killed', 'tests/test_ray.py', '-k', 'killed_worker')
        soak.tests('machine of a search lost', 'tests/test_ray.py', '-k', 'lost_machine')
        soak.tests('machine joins a search', 'tests/test_ray.py', '-k', 'joins_late')
        soak.tests('candidate too large for a worker', 'tests/test_ray.py', '-k', 'too_large')
        soak.tests('worker with other images', 'tests/test_ray.py', '-k', 'other_images')
        soak.tests('driver of workers killed', 'tests/test_ray.py', '-k', 'killed_driver')
        soak.tests('file made to run code', 'tests/test_malicious.py')
        soak.tests('other file of a stranger', 'tests/test_strangers.py')
    finish(soak, args, time.monotonic() - started)


def finish(soak: Soak, args, seconds: float) -> None:
    """Print and store the table."""
    table = Table(title=f'Seed {args.seed}, {seconds / 60:.0f} minutes')
    for column in ('fault', 'times', 'survived', 'lost'):
        table.add_column(column, justify='left' if column == 'fault' else 'right')
    for fault, times, survived, lost in soak.rows:
        table.add_row(fault, str(times), str(survived), str(len(lost)))
    console.print(table)
    if args.out:
        Path(args.out).write_text(json.dumps(soak.rows, indent=2) + '\n')
    sys.exit(any(lost for *_, lost in soak.rows))


if __name__ == '__main__':
    main()
