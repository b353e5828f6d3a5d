"""The checkpoints of a run in its folder: which are its own, and in what order.

Each start of a training gets an identity. All starts so far, with the place each began at, are in
its checkpoints and in ``training.json`` of the work directory. So a checkpoint of an earlier run in
the same folder, or one from after the place where the last start began, is known as such. Neither
times nor stored paths count: copying a folder changes the former, and the latter lead out of it.
"""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from uuid import uuid4

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.logging import print_log

from ...atomic_files import is_whole, write_atomic
from ...checks import natural
from ...errors import UserError
from ...models.safe_load import read_progress
from ...provenance import read_json
from ...ranks import is_first_rank

FILE = 'training.json'
_STARTS = 'starts'  # in the message hub, so also in checkpoints

Place = tuple[int, int]  # epochs and iterations that are done
Start = tuple[str | None, int, int]  # identity and place
_BEFORE = (None, 0, 0)  # of a checkpoint that names none, as those of 0.1


@dataclass
class Checkpoints:
    """What a folder has to resume from.

    Args:
        newest: The furthest intact checkpoint of the run, None if there is none.
        damaged: Files that are not whole, among those that would come first.
        of_others: Checkpoints of earlier runs, and those that the run has left behind.
    """

    newest: Path | None = None
    damaged: list[Path] = field(default_factory=list)
    of_others: list[Path] = field(default_factory=list)


def checkpoint_folder(work_dir: str | Path, out_dir: str | Path | None = None) -> str:
    """Where MMEngine's ``CheckpointHook`` writes: the work directory, or its name in ``out_dir``.

    Args:
        work_dir: The work directory.
        out_dir: The hook's argument; may be an address, as 's3://bucket/runs'.
    """
    work_dir = os.path.abspath(work_dir)
    if out_dir is None or out_dir == work_dir:
        return work_dir
    return os.path.join(out_dir, os.path.basename(work_dir))


def is_remote(folder: str | Path) -> bool:
    """Whether a folder of checkpoints is an address rather than a path."""
    return '://' in str(folder)


def find_checkpoints(folder: str | Path, work_dir: str | Path | None = None) -> Checkpoints:
    """Look through the training checkpoints of a folder, without those of best scores.

    Args:
        folder: Where the checkpoints are.
        work_dir: Where ``training.json`` is, if elsewhere. Without that file all of them count.
    """
    found, starts = Checkpoints(), _record(Path(work_dir or folder) / FILE).get(_STARTS)
    own: list[tuple[Place, Path]] = []
    for path in sorted(Path(folder).glob('*.pth')):
        if path.name.startswith('best_') or not path.is_file():
            continue
        try:
            meta, info = read_progress(path)
        except UserError:
            found.damaged.append(path)
            continue
        if (place := place_of(meta)) is None:
            continue  # weights alone
        if starts is None or _is_of_run(place, _starts(info), starts):
            own.append((place, path))
        else:
            found.of_others.append(path)
    for _, path in sorted(own, reverse=True):
        if is_whole(path):
            found.newest = path
            break
        found.damaged.append(path)
    return found


def newest_whole(folder: str | Path) -> Path | None:
    """The furthest intact checkpoint of the run in a folder."""
    return find_checkpoints(folder).newest


def find_resumable(work_dir: str | Path, folder: str | Path | None = None) -> Path | None:
    """The checkpoint from which training in ``work_dir`` resumes; None if there is none yet.

    It is the furthest one by epoch and iteration that is intact and of this run. A line in the log
    names the damaged ones that were skipped, and those of earlier runs if there is no other.

    Args:
        work_dir: The work directory.
        folder: Where the checkpoints are, if elsewhere.

    Raises:
        UserError: If there are checkpoints of the run, but all are damaged; or if ``folder`` is an
            address.
    """
    if folder is not None and is_remote(folder):
        raise UserError(
            f'{folder} is not searched for a checkpoint to resume from: copy one to this machine, '
            'and give it by --resume FILE'
        )
    folder = Path(folder or work_dir)
    found = find_checkpoints(folder, work_dir)
    damaged = ', '.join(path.name for path in found.damaged)
    if damaged and found.newest is None and not found.of_others:
        raise UserError(f'{folder} has no intact checkpoint to resume from: {damaged} damaged')
    if damaged:
        _warn(f'Skipped in {folder}, since damaged (truncated or changed): {damaged}')
    if found.of_others and found.newest is None:
        others = ', '.join(path.name for path in found.of_others)
        _warn(
            f'The run that was last started in {work_dir} has no checkpoint yet, so it starts '
            f'again; not resumed, as of an earlier run: {others} (--resume FILE does)'
        )
    return found.newest


def checkpoint_or_first_start(
    work_dir: str | Path, folder: str | Path, load_from: str | None, allow_changes: bool
) -> Path | None:
    """:func:`find_resumable`, with :func:`check_first_start` if there is none.

    Args:
        work_dir: The work directory.
        folder: Where the checkpoints are.
        load_from: The weights of a first start.
        allow_changes: Start from other weights than before.

    Raises:
        UserError: As these two.
    """
    found = find_resumable(work_dir, folder)
    if found is None and not allow_changes:
        check_first_start(work_dir, load_from)
    return found


def _warn(text: str) -> None:
    """Log a line, maybe before there is a runner, on one rank."""
    if is_first_rank():
        print_log(text, 'current', logging.WARNING)


def is_of_same_run(path: Path, checkpoint: Path, meta: Mapping, info: Mapping) -> bool:
    """Whether a local file is of the run that a checkpoint is of, and from no later place.

    A file that names no start, as those of 0.1, counts only beside the checkpoint.

    Args:
        path: The file.
        checkpoint: Where the checkpoint is.
        meta: That of the checkpoint.
        info: The ``runtime_info`` of its message hub.
    """
    if not path.is_file() or (here := place_of(meta)) is None:
        return False
    try:
        its_meta, its_info = read_progress(path)
    except UserError:
        return False
    place, own = place_of(its_meta), _starts(its_info)
    if own[-1][0] is None and path.resolve().parent != checkpoint.resolve().parent:
        return False
    return place is not None and _is_of_run(place, own, [*_starts(info), (None, *here)])


def note_start(runner) -> None:
    """Record that a run starts or resumes here, in its message hub and its work directory."""
    identity = [uuid4().hex]
    broadcast_object_list(identity)
    hub, path = runner.message_hub, Path(runner.work_dir) / FILE
    starts = _starts(hub.runtime_info) if runner._resume else []
    starts.append((identity[0], runner.epoch, runner.iter))
    hub.update_info(_STARTS, json.dumps(starts))
    if is_main_process():
        load_from = _record(path).get('load_from') if runner._resume else runner._load_from
        record = dict(
            starts=starts,
            load_from=load_from and str(load_from),
            last_start=datetime.now().isoformat(' ', 'seconds'),
        )
        write_atomic(path, json.dumps(record) + '\n')


def first_start(cfg: Mapping) -> str | None:
    """The ``load_from`` of a config's run when it first starts or started, None if unknown.

    A rehearsal, which neither resumes nor has the work directory, is told it in its config.
    """
    if 'first_start' in cfg:
        return cfg['first_start']
    if not cfg.get('resume'):
        return cfg.get('load_from')
    return _record(Path(cfg['work_dir']) / FILE).get('load_from')


def forget_starts(work_dir: str | Path) -> None:
    """Before a training that notes no starts: the record would rule out its checkpoints."""
    (Path(work_dir) / FILE).unlink(missing_ok=True)


def check_first_start(work_dir: str | Path, load_from: str | None) -> None:
    """Refuse to start again from other weights what was started but has no checkpoint.

    Raises:
        UserError: With both.
    """
    record = _record(Path(work_dir) / FILE)
    before = record.get('load_from')
    if record and _absolute(before) != _absolute(load_from):
        raise UserError(
            f'{work_dir}: the run of {record.get("last_start")} has no checkpoint to resume from. '
            f'It started from load_from={before}, which is {load_from} now: start it with that, '
            'leave out --resume to start a new run, or resume from a file by --resume FILE'
        )


def _absolute(path: str | None) -> str | None:
    return path if not path or is_remote(path) else os.path.abspath(path)


def _record(path: Path) -> Mapping:
    """The content of ``training.json``; empty if it is missing, or not as we write it."""
    try:
        record = read_json(path, kind=dict)
        record[_STARTS] = _checked(record[_STARTS])
    except (KeyError, TypeError, ValueError):
        return {}
    texts = (record.get(key) for key in ('load_from', 'last_start'))
    is_ours = record[_STARTS] and all(isinstance(text, (str, type(None))) for text in texts)
    return record if is_ours else {}


def _starts(info: Mapping) -> list[Start]:
    """The starts in a message hub."""
    try:
        return _checked(json.loads(info[_STARTS])) or [_BEFORE]
    except (KeyError, TypeError, ValueError, RecursionError):
        return [_BEFORE]


def _checked(starts) -> list[Start]:
    """Starts from a file; raises TypeError or ValueError if they are anything else."""
    checked = [(name, natural(epoch, ''), natural(done, '')) for name, epoch, done in starts]
    if not all(isinstance(name, (str, type(None))) for name, *_ in checked):
        raise TypeError('the name of a start must be a text')
    return checked


def _is_of_run(place: Place, own: list[Start], starts: list[Start]) -> bool:
    """Whether a checkpoint's last start is among those of the run, and none began before it."""
    names = [name for name, *_ in starts]
    if own[-1][0] not in names:
        return False
    later = starts[names.index(own[-1][0]) + 1 :]
    return all(place <= (epoch, iteration) for _, epoch, iteration in later)


def place_of(meta: Mapping) -> Place | None:
    """Epochs and iterations that the ``meta`` of a checkpoint says are done; None if it does not.

    Args:
        meta: From a file, so of any content.
    """
    try:
        return natural(meta['epoch'], 'epoch'), natural(meta['iter'], 'iter')
    except (KeyError, UserError):
        return None
