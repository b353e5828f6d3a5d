"""A folder that one run writes to at a time.

The lock is the system's (``flock``): it ends with its process, however that ends, and a file system
that is shared by machines shares it where its server does (NFS 4, Lustre with ``-o flock``,
BeeGFS and GPFS with locks on). Where there are none, :mod:`filelock` keeps a file in their place,
which a killed process of another machine leaves.
"""

import json
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from .atomic_files import write_atomic
from .errors import UserError, printable, system_reason
from .provenance import read_json

LOCK, RECORD = 'run.lock', 'run.lock.json'
_SHOWN = 100  # characters of a command
_GLANCE = 1.0  # seconds; that long, at most, somebody else looks whether it is free
_LAST_CALL = 10.0  # seconds; loader workers of a killed process see within 5 that it has gone


@contextmanager
def held(folder: str | Path) -> Iterator[str]:
    """Hold the lock of a folder, which is created if missing.

    ``run.lock.json`` says who does: host, process, start and command.

    Yields:
        A line for the log if the last holder ended without releasing the lock; else ''.

    Raises:
        UserError: If another process holds it, with what is known of that one; or if the path
            cannot be a folder.
    """
    folder = Path(folder)
    check_path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'{folder} cannot be created: {system_reason(error)}') from error
    with _locked(folder):
        left = _record(folder)
        try:
            write_atomic(folder / RECORD, json.dumps(_own_record()) + '\n')
            yield _taken_over(folder, left) if left else ''
        finally:
            for name in (RECORD, LOCK):  # who waits for the deleted file sees that it is deleted
                with suppress(OSError):  # the folder has gone, or its disk: that was said
                    (folder / name).unlink(missing_ok=True)


def check_free(folder: str | Path) -> None:
    """Refuse a folder whose lock another process holds; change nothing in it.

    Raises:
        UserError: As :func:`held`.
    """
    check_path(folder)
    if (Path(folder) / LOCK).exists():
        with _locked(Path(folder)):
            pass


def check_path(folder: str | Path) -> None:
    """Refuse a path that is a file, or leads through one.

    Raises:
        UserError: If so.
    """
    folder = Path(folder)
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise UserError(f'{folder} cannot be a folder: {path} is a file; give another folder')


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=_patience(folder))
    except Timeout as error:
        raise UserError(_refusal(folder)) from error
    except OSError as error:
        raise UserError(f'{folder} cannot be locked: {system_reason(error)}') from error
    try:
        yield
    finally:
        lock.release()


def _own_record() -> dict:
    process = psutil.Process()
    return dict(
        host=socket.gethostname(),
        process=process.pid,
        started=datetime.fromtimestamp(process.create_time()).isoformat(' ', 'seconds'),
        created=process.create_time(),  # tells it from a later process of this number
        command=sys.argv,
    )


def _record(folder: Path) -> Mapping:
    """Who holds or has left the lock; empty if that is not known."""
    try:
        return read_json(folder / RECORD, kind=dict)
    except UserError:
        return {}


def _patience(folder: Path) -> float:
    """Seconds to wait for the lock: for what a dead process of this machine has started."""
    record = _record(folder)
    return _LAST_CALL if record and _is_here(record) and not _is_alive(record) else _GLANCE


def _is_here(record: Mapping) -> bool:
    return record.get('host') == socket.gethostname()


def _is_alive(record: Mapping) -> bool:
    try:
        created = psutil.Process(record['process']).create_time()
        return abs(created - record['created']) < 2
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False


def _holder(record: Mapping) -> str:
    if not record:
        return 'another process'
    what = ('process', 'host', 'started')
    number, host, started = (str(record.get(key, '?'))[:60] for key in what)
    command = record.get('command')
    line = ' '.join(map(str, command)) if isinstance(command, list) else ''
    line = f': {line[:_SHOWN]}{"..." if len(line) > _SHOWN else ""}' if line else ''
    return ' '.join(printable(f'process {number} on {host}, started {started}{line}').split())


def _refusal(folder: Path) -> str:
    record = _record(folder)
    text = f'{folder} is in use by {_holder(record)}'
    if record and _is_here(record) and not _is_alive(record):
        text += '; it has ended, but processes that it started have not'
    advice = 'wait for it or stop it, or choose another folder'
    if record and not _is_here(record):
        advice += f'; if it runs no more, delete {folder / LOCK}'
    return f'{text}; {advice}'


def _taken_over(folder: Path, record: Mapping) -> str:
    text = f'{folder}: the last run ({_holder(record)}) ended without releasing its lock'
    if not _is_here(record):
        return (
            f'{text}, or its locks are not seen on this machine: make sure that it runs no more. '
            'Taken over.'
        )
    return f'{text}. Taken over.'
