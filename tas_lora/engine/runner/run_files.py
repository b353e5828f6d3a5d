"""The checkpoints of a run in its folder: which are its own, and in what order.

Each start of a training gets an identity. All starts so far, with the place each began at, are in
its checkpoints and in ``training.json`` of the work directory. So a checkpoint of an earlier run in
the same folder, or one from after the place where the last start began, is known as such. Neither
times nor stored paths count: copying a folder changes the former, and the latter lead out of it.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from uuid import uuid4

from mmengine.dist import broadcast_object_list, is_main_process

from ...atomic_files import is_whole, write_atomic
from ...errors import UserError
from ...models.safe_load import read_progress
from ...provenance import read_json

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


def find_checkpoints(folder: str | Path, work_dir: str | Path | None = None) -> Checkpoints:
    """Look through the training checkpoints of a folder, without those of best scores.

    Args:
        folder: Where the checkpoints are.
        work_dir: Where ``training.json`` is, if elsewhere. Without that file all of them count.
    """
    found, starts = Checkpoints(), _known_starts(Path(work_dir or folder))
    own: list[tuple[Place, Path]] = []
    for path in sorted(Path(folder).glob('*.pth')):
        if path.name.startswith('best_') or not path.is_file():
            continue
        try:
            meta, info = read_progress(path)
        except UserError:
            found.damaged.append(path)
            continue
        if (place := _place(meta)) is None:
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
    return path if not path or '://' in path else os.path.abspath(path)


def _record(path: Path) -> Mapping:
    try:
        return read_json(path, kind=dict)
    except UserError:
        return {}


def _known_starts(work_dir: Path) -> list[Start] | None:
    try:
        return _checked(_record(work_dir / FILE)[_STARTS]) or None
    except (KeyError, TypeError, ValueError):
        return None


def _starts(info: Mapping) -> list[Start]:
    """The starts in a message hub."""
    try:
        return _checked(json.loads(info[_STARTS])) or [_BEFORE]
    except (KeyError, TypeError, ValueError):
        return [_BEFORE]


def _checked(starts) -> list[Start]:
    return [(None if name is None else str(name), int(e), int(i)) for name, e, i in starts]


def _is_of_run(place: Place, own: list[Start], starts: list[Start]) -> bool:
    """Whether a checkpoint's last start is among those of the run, and none began before it."""
    names = [name for name, *_ in starts]
    if own[-1][0] not in names:
        return False
    later = starts[names.index(own[-1][0]) + 1 :]
    return all(place <= (epoch, iteration) for _, epoch, iteration in later)


def _place(meta: Mapping) -> Place | None:
    place = meta.get('epoch'), meta.get('iter')
    return place if all(isinstance(number, int) for number in place) else None
