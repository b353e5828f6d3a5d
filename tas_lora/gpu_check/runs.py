"""Parts of a check, each in a process of its own, with a record that is kept."""

import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.registry import init_default_scope

from ..atomic_files import write_atomic
from ..packaged import CONFIGS
from ..provenance import read_json, versions

MACHINE = 'machine'
_SOURCES = (Path(__file__).resolve().parent.parent, CONFIGS)
_ENOUGH = 0.4  # of a part's limit, to begin it
_CPU_PATIENCE = 4  # times the limit on a GPU: other programs may share the processor


class SkippedError(Exception):
    """A part that has no meaning here; the message says why."""


@dataclass(frozen=True)
class Setting:
    """What all parts are given.

    Args:
        device: 'cpu' or 'cuda'.
        quick: Whether sizes are tiny: the parts run, their figures mean nothing.
        folder: Where records are kept, and logs of the parts.
        fashion: Folder with the files of Fashion-MNIST, zipped or not, if it is known.
    """

    device: str
    quick: bool
    folder: str
    fashion: str | None = None

    def scratch(self, name: str) -> Path:
        """A folder for the files of a part."""
        path = Path(self.folder) / 'scratch' / name
        path.mkdir(parents=True, exist_ok=True)
        return path


@dataclass(frozen=True)
class Part:
    """One part: ``job`` returns its figures within ``limit`` seconds on a GPU, or is ended.

    The limit is twice what it is expected to take. With clearly less left it is not begun.
    Figures are JSON. For the page they may hold ``tables`` (dicts of title, columns, rows),
    ``targets`` (dicts of name, target, measured, met) and ``notes`` (sentences).
    """

    name: str
    title: str
    job: Callable[[Setting], dict]
    limit: float


def run_parts(
    parts: Mapping[str, Part],
    setting: Setting,
    minutes: float,
    tell: Callable[[str], object],
    keep: Callable[[dict[str, dict]], object],
) -> dict[str, dict]:
    """Run all parts that have no record yet; one that fails does not stop the others.

    A record counts if it is of the same device, versions, code, configs and sizes. What failed or
    was skipped runs again.

    Args:
        parts: The parts by name, the most important first. 'machine' always runs.
        setting: What they are given.
        minutes: When the running part is ended; one that does not fit before is not begun.
        tell: Called with a line for each part.
        keep: Called after each part with the records so far.

    Returns:
        For each part its record: ``status`` ('done', 'skipped', 'failed', 'timeout' or 'no time'),
        ``seconds``, ``figures`` or ``reason``, and ``key``, what it depends on.
    """
    deadline, records, key = time.monotonic() + 60 * minutes, {}, None
    for name, part in parts.items():
        path, left = Path(setting.folder) / f'{name}.json', deadline - time.monotonic()
        record = None if name == MACHINE else _known(path, key)
        if record is not None:
            tell(f'{name}: done in an earlier run')
        elif left < _ENOUGH * part.limit and name != MACHINE:
            reason = f'too little is left of the {minutes:g} minutes; run it again to continue'
            record = dict(status='no time', seconds=0, reason=reason, key=key)
            tell(f'{name}: {reason}')
        else:
            tell(f'{name}: {part.title} ...')
            record = _run(part, setting, max(left, 30))
            key = _key(record, setting) if name == MACHINE else key
            record['key'] = key
            write_atomic(path, json.dumps(record, indent=2) + '\n')
            reason = f', {record["reason"]}' if 'reason' in record else ''
            tell(f'{name}: {record["status"]} in {record["seconds"]:.0f} s{reason}')
        records[name] = record
        keep(records)
    return records


def _known(path: Path, key: dict | None) -> dict | None:
    with suppress(Exception):  # a record that cannot be read is measured again
        record = read_json(path, kind=dict)
        if record['key'] == key and record['status'] == 'done':
            return record
    return None


def _key(machine: dict, setting: Setting) -> dict:
    """What a record depends on."""
    figures = machine.get('figures') or {}
    found = {name: figures.get(name) for name in ('device', 'driver')} | versions()
    return found | dict(
        code=_code_sha256(),
        cuda=torch.version.cuda,
        quick=setting.quick,
        asked=setting.device,
        data=setting.fashion,
    )


def _run(part: Part, setting: Setting, left: float) -> dict:
    """Run a part in a new process, for ``left`` seconds at most; its record without its key."""
    # A process that has used CUDA cannot fork it. On a CPU forks of a server save the imports; this
    # process may have used autograd, whose threads do not survive a fork.
    can_fork = setting.device == 'cpu' and sys.platform == 'linux'
    context = multiprocessing.get_context('forkserver' if can_fork else 'spawn')
    context.set_forkserver_preload(['tas_lora.gpu_check'])
    path, start = Path(setting.folder) / f'{part.name}.part', time.monotonic()
    path.unlink(missing_ok=True)
    seconds = min(part.limit * (_CPU_PATIENCE if setting.device == 'cpu' else 1), left)
    process = context.Process(target=_child, args=(part.job, part.name, setting, str(path)))
    process.start()
    try:
        process.join(seconds)
        ran_out = process.is_alive()
    finally:
        with suppress(ProcessLookupError, PermissionError):  # also what it has started
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()
    return _outcome(path, seconds, ran_out, process.exitcode) | dict(
        seconds=round(time.monotonic() - start, 1)
    )


def _outcome(path: Path, seconds: float, ran_out: bool, code: int) -> dict:
    """What a part has left, or why it left nothing."""
    if path.is_file():
        found = json.loads(path.read_text())
        path.unlink()
        return found
    if ran_out:
        return dict(status='timeout', reason=f'it was ended after {seconds:.0f} s')
    return dict(status='failed', reason=f'exit code {code}')


def _child(job: Callable[[Setting], dict], name: str, setting: Setting, path: str) -> None:
    os.setsid()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    log = (Path(setting.folder) / f'{name}.log').open('w', buffering=1)
    for number in (1, 2):  # also what libraries and further processes write
        os.dup2(log.fileno(), number)
    sys.stdout = sys.stderr = log
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    warnings.filterwarnings('ignore')
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    try:
        record = dict(status='done', figures=job(setting))
    except SkippedError as skipped:
        record = dict(status='skipped', reason=str(skipped))
    except Exception as error:
        traceback.print_exc()
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:500]
        record = dict(status='failed', reason=reason)
    write_atomic(path, json.dumps(record))
    log.flush()
    os._exit(0)  # a thread of a library must not hold what is done


def _end_with_parent() -> None:
    """End this process and those it has started when the one that measures is gone, killed or not.

    They would use the device while the next start measures.
    """
    multiprocessing.parent_process().join()
    os.killpg(0, signal.SIGKILL)


def describe_machine(setting: Setting) -> dict:
    """Card, driver and versions, and the commit of a clone."""
    commit = _output('git', '-C', str(_SOURCES[0]), 'describe', '--always', '--dirty')
    figures = dict(commit=commit, torch=torch.__version__, cuda=torch.version.cuda)
    figures |= dict(versions=versions(), quick=setting.quick, threads=torch.get_num_threads())
    if setting.device == 'cpu':
        return figures | dict(device='CPU', driver=None, memory_gib=None)
    card = torch.cuda.get_device_properties(0)
    driver = _output('nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader', '--id=0')
    if card.major < 8:
        figures['notes'] = ['This GPU emulates bfloat16, which most parts measure.']
    return figures | dict(
        device=card.name,
        driver=driver,
        memory_gib=round(card.total_memory / 2**30, 1),
        capability=f'{card.major}.{card.minor}',
        multiprocessors=card.multi_processor_count,
        cudnn=torch.backends.cudnn.version(),
    )


def _code_sha256() -> str:
    """Of all that a figure depends on; a commit would also change with the page that is written."""
    digest = hashlib.sha256()
    for folder in _SOURCES:
        for path in sorted(folder.rglob('*.py')):
            code = path.read_bytes()
            digest.update(f'{path.relative_to(folder).as_posix()} {len(code)}\n'.encode() + code)
    return digest.hexdigest()


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
