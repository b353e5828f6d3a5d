"""What was evaluated, on disk as it is known: from it a killed search takes up its place."""

import json
import os
import time
import warnings
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct

import numpy as np

from ..errors import UserError
from ..structures import Subnet

_HEAD = Struct('<4sIII')  # mark, bytes of JSON, bytes of losses, CRC-32 of both
_MARK = b'TASJ'
_SYNC_EVERY = 1.0  # seconds


@dataclass(frozen=True)
class Task:
    """A subnet to evaluate on some images.

    Args:
        number: Place among all that a search evaluates, from 0.
        subnet: The subnet.
        precision: Of the forward.
        images: Indices of held-out images; None for all of them, with all metrics.
    """

    number: int
    subnet: Subnet
    precision: str = 'float32'
    images: np.ndarray | None = None


@dataclass(frozen=True)
class Outcome:
    """What a task gave: losses by image, or metrics; neither if memory did not suffice."""

    metrics: dict[str, float] = field(default_factory=dict)
    losses: np.ndarray | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing was evaluated."""
        return not self.metrics and self.losses is None


class Journal:
    """Outcomes of tasks, appended one by one; those of a killed search are recalled.

    Args:
        path: The file.
        resume: Keep what is in it; else it is moved aside, to a file that ends in ``.old``.

    Raises:
        UserError: If the file is something else, or cannot be read.
    """

    def __init__(self, path: str | Path, resume: bool):
        self.path = Path(path)
        if not resume and self.path.exists():
            self.path.replace(self.path.with_name(f'{self.path.name}.old'))
        self.known = _read(self.path) if self.path.exists() else {}
        self.synced = 0.0  # when

    def recall(self, task: Task) -> Outcome | None:
        """What is known of a task; the journal must have it of the same subnet and images.

        Raises:
            UserError: If it is of another, so that the journal is of another search.
        """
        header, losses = self.known.get(task.number, (None, None))
        if header is None:
            return None
        if any(header[key] != value for key, value in _identity(task).items()):
            raise UserError(
                f'{self.path}: entry {task.number} is not of the subnet and images that this '
                'search evaluates next: it is the journal of another one; search anew, without '
                '--resume'
            )
        return Outcome(header['metrics'], losses)

    def append(self, task: Task, outcome: Outcome) -> None:
        """Write the outcome of a task.

        A killed process loses nothing of it. A power failure may take the last second, for
        syncing every slice of a race to disk would cost more than all else that is written down.
        """
        header = dict(number=task.number, **_identity(task), metrics=outcome.metrics)
        text = json.dumps(header).encode()
        losses = b'' if outcome.losses is None else outcome.losses.astype('<f4').tobytes()
        head = _HEAD.pack(_MARK, len(text), len(losses), zlib.crc32(text + losses))
        with self.path.open('ab') as file:
            file.write(head + text + losses)
            file.flush()
            if time.monotonic() - self.synced > _SYNC_EVERY:
                os.fsync(file.fileno())
                self.synced = time.monotonic()


def _identity(task: Task) -> dict:
    """What tells a task from others of the same number, of the images a checksum."""
    images = None if task.images is None else np.asarray(task.images, '<i8')
    return dict(
        subnet=task.subnet.to_dict(),
        precision=task.precision,
        images=None if images is None else [len(images), zlib.crc32(images.tobytes())],
    )


def _read(path: Path) -> dict[int, tuple[dict, np.ndarray | None]]:
    """Entries by number; from the first one that is torn or damaged the rest is cut off."""
    try:
        content, entries, place = path.read_bytes(), {}, 0
    except OSError as error:
        raise UserError(f'search journal {path} cannot be read: {error}') from error
    while (entry := _entry(content, place)) is not None:
        header, losses, place = entry
        entries[header['number']] = header, losses
    if content and not entries and not _MARK.startswith(content[:4]):
        raise UserError(f'{path} is no journal of a search; search anew, without --resume')
    if place < len(content):
        rest = len(content) - place
        warnings.warn(f'{path}: the last {rest:,} bytes are torn, and left out', stacklevel=3)
        os.truncate(path, place)
    return entries


def _entry(content: bytes, place: int) -> tuple[dict, np.ndarray | None, int] | None:
    """The entry at a place and where the next one begins; None if it is not whole."""
    body = place + _HEAD.size
    if len(content) < body:
        return None
    mark, text_size, losses_size, checksum = _HEAD.unpack_from(content, place)
    end = body + text_size + losses_size
    if mark != _MARK or len(content) < end or zlib.crc32(content[body:end]) != checksum:
        return None
    header = json.loads(content[body : body + text_size])
    losses = np.frombuffer(content[body + text_size : end], '<f4') if losses_size else None
    return header, losses, end
