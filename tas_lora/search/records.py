"""Record a search on disk as lines of JSON: history, journal and measurements.

The files only grow, one line at a time. A killed search may leave a truncated last line; a
resumed one cuts it off before it writes the next.
"""

import json
import os
import time
import warnings
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import Callable, Mapping
from math import inf, isclose, isnan
from pathlib import Path
from reprlib import repr as short
from zlib import crc32

import numpy as np

from ..atomic_files import append_line
from ..checks import bounded, inside, natural
from ..errors import UserError
from ..provenance import read_file
from ..structures import Subnet
from .task import Executor, Outcome, Task

_TEXTS = ('phase', 'precision')
_SAME = ('subnet', 'generation', *_TEXTS)  # must be equal when a search is resumed
_SYNC_EVERY = 1.0  # seconds between two syncs of the journal
_CHECKSUM = b', "crc32": '


def read_history(path: str | Path) -> list[dict]:
    """Read what a search wrote about every subnet it scored, in order.

    A truncated last line, as a killed search leaves it, is ignored with a warning.

    Args:
        path: ``search_history.jsonl`` of a search.

    Returns:
        A dict per subnet: ``subnet`` (the fields of a :class:`~tas_lora.Subnet`), ``phase``
        ('search', 'baseline' or 'finals'), ``precision``, and numbers: ``generation``, ``images``
        (how many the score is based on), ``error`` (its standard error, 0 if that is all images),
        costs and metrics.

    Raises:
        UserError: If the file cannot be read, is empty, or has a line of another form.
    """
    lines = _read(path, 'search history', check=_scored)
    if not lines:
        raise UserError(f'{path} is empty: the search scored no subnet')
    return lines


class History:
    """The lines of a search, written to disk one by one.

    A resumed search scores the same subnets in the same order. Its lines are compared with those
    on disk as long as there are any, then appended.

    Args:
        path: ``search_history.jsonl``; need not exist.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.known = _read(self.path, 'search history', check=_scored, resume=True)
        self.place = 0  # of the next line

    def add(self, line: dict) -> None:
        """Append the next line, or compare it with the one on disk.

        Raises:
            UserError: If the two differ, so the history belongs to another search.
        """
        if self.place == len(self.known):
            append_line(self.path, json.dumps(line))
            self.known.append(line)
        elif not _is_same(self.known[self.place], line):
            raise UserError(
                f'{self.path}, line {self.place + 1} is not of the subnet that this search scores '
                'next, or has different numbers: the history is from another search; start a new '
                'one without --resume'
            )
        self.place += 1

    def finish(self, with_random: bool) -> None:
        """Refuse lines that are left at the end of a search.

        Args:
            with_random: Whether the search included a random search; if not, the lines of an
                earlier one may be left.

        Raises:
            UserError: If there are any others.
        """
        left = self.known[self.place :]
        if left and (with_random or not all(map(_is_of_random_search, left))):
            raise UserError(
                f'{self.path}, line {self.place + 1} is of no subnet that this search scores: '
                f'delete the last {len(left)} lines, or start a new search without --resume'
            )


class Journal:
    """Outcomes of tasks, written to disk one by one; a resumed search recalls them.

    Args:
        path: ``search_journal.jsonl``; need not exist. A line has the task (with a checksum of
            its images), the metrics, the losses as base64 of float32, and the CRC-32 of the line.

    Raises:
        UserError: If it cannot be read, or a line was changed.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        entries = _read(self.path, 'search journal', _unsealed, _entry, resume=True)
        self.known = {entry['number']: entry for entry in entries}
        self.synced = -inf  # when

    def recall(self, task: Task) -> Outcome | None:
        """Return the outcome of a task, None if it is not known.

        Raises:
            UserError: If the journal has a different task of this number.
        """
        entry = self.known.get(task.number)
        if entry is None:
            return None
        if any(entry[key] != value for key, value in _identity(task).items()):
            raise UserError(
                f'{self.path}: entry {task.number} is not of the subnet and images that this '
                'search evaluates next: the journal is from another search; start a new one '
                'without --resume'
            )
        losses = entry['losses']
        losses = None if losses is None else np.frombuffer(b64decode(losses), '<f4')
        return Outcome(entry['metrics'], losses, entry.get('seconds', 0.0))

    def append(self, task: Task, outcome: Outcome) -> None:
        """Append the outcome of a task.

        A power failure may take those of the last second: to sync every slice of a race would
        cost more than everything else that is written.
        """
        losses = outcome.losses
        if losses is not None:
            losses = b64encode(losses.astype('<f4').tobytes()).decode()
        found = dict(metrics=outcome.metrics, losses=losses, seconds=round(outcome.seconds, 6))
        text = json.dumps(_identity(task) | found)
        checksum = _CHECKSUM.decode() + str(crc32(text.encode()))
        is_due = time.monotonic() - self.synced > _SYNC_EVERY
        append_line(self.path, f'{text[:-1]}{checksum}}}', sync=is_due)
        if is_due:
            self.synced = time.monotonic()


class Journalled:
    """An executor that recalls what a journal knows, and enters everything else into it.

    Args:
        executor: Evaluates what the journal does not know.
        journal: The journal of the search.
        on_fresh: Called with each new task, its outcome, and the seconds that the search waited.
    """

    def __init__(
        self,
        executor: Executor,
        journal: Journal,
        on_fresh: Callable[[Task, Outcome, float], None] = lambda task, outcome, seconds: None,
    ):
        self.executor, self.journal, self.on_fresh = executor, journal, on_fresh
        self.recalled = deque[tuple[Task, Outcome]]()

    def submit(self, task: Task) -> None:
        """As :class:`Executor`."""
        outcome = self.journal.recall(task)
        if outcome is None:
            self.executor.submit(task)
        else:
            self.recalled.append((task, outcome))

    def collect(self) -> tuple[Task, Outcome]:
        """As :class:`Executor`; what the journal knows comes first."""
        if self.recalled:
            return self.recalled.popleft()
        start = time.monotonic()
        task, outcome = self.executor.collect()
        self.journal.append(task, outcome)
        self.on_fresh(task, outcome, time.monotonic() - start)
        return task, outcome


class Measured:
    """Measured costs of subnets, written to disk one by one.

    A second measurement could change the number, and with it the search. So each subnet is
    measured once, when its cost is first needed.

    Args:
        path: ``measured.jsonl``. A line has ``subnet`` and each cost by its name, such as
            ``latency`` and ``latency_spread`` in ms and ``memory`` in MiB.
        measure: Returns all costs of a subnet by name: 0 or more, infinite if it cannot run.
        known: Costs of subnets that were measured elsewhere.
    """

    def __init__(
        self,
        path: str | Path,
        measure: Callable[[Subnet], Mapping[str, float]],
        known: Mapping[Subnet, dict[str, float]] | None = None,
    ):
        self.path, self.measure, self.known = Path(path), measure, dict(known or {})

    def resume(self) -> None:
        """Load what is on disk; the file need not exist.

        Raises:
            UserError: As :func:`read_measured`.
        """
        own = _read(self.path, 'measurements', check=_measurement, resume=True)
        self.known = dict(own) | self.known

    def cost(self, name: str, subnet: Subnet) -> float:
        """Return one cost of ``subnet``, which is measured if it has not been yet.

        Raises:
            UserError: If there is no such cost.
        """
        if subnet not in self.known:
            record = dict(subnet=subnet.to_dict(), **self.measure(subnet))
            _, costs = _measurement(record)
            append_line(self.path, json.dumps(record | costs))
            self.known[subnet] = costs
        costs = self.known[subnet]
        if name not in costs:
            raise UserError(
                f'{self.path} has no {name} of {subnet}, only {sorted(costs)}; start a new search '
                'without --resume'
            )
        return costs[name]


def read_measured(path: str | Path) -> dict[Subnet, dict[str, float]]:
    """Read what a search has measured: costs by name, for each subnet.

    Raises:
        UserError: If the file cannot be read, or a line is not a subnet with numbers from 0 up.
    """
    return dict(_read(path, 'measurements', check=_measurement))


def _read(
    path: str | Path,
    what: str,
    parse: Callable[[bytes], object] = json.loads,
    check: Callable = lambda record: record,
    resume: bool = False,
) -> list:
    """Read the lines of a file, each as ``check`` returns it.

    A truncated last line, which ``parse`` refuses, is ignored with a warning. To ``resume``, it is
    also cut off the file, which need not exist.
    """
    if resume and not Path(path).exists():
        return []
    try:
        content = read_file(path)
    except (OSError, ValueError) as error:  # ValueError: an impossible path
        raise UserError(f'{what} {path} cannot be read: {error}') from error
    *lines, rest = content.split(b'\n')
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(parse(line))
        except (ValueError, RecursionError) as error:
            if rest or number < len(lines):
                raise UserError(f'{path}, line {number} is damaged: {error}') from error
            rest = line + b'\n'
    if rest and not (found or rest.startswith(b'{')):
        raise UserError(f'{path} is not a {what}; move it away')
    if rest:
        warnings.warn(f'{path}: the last line is truncated, ignored', stacklevel=3)
        if resume:
            os.truncate(path, len(content) - len(rest))
    for place, record in enumerate(found):
        with inside(f'{path}, line {place + 1}'):
            found[place] = check(record)
    return found


def _numbers(record) -> dict:
    """Return all items of a line but its subnet."""
    if not isinstance(record, dict) or not isinstance(record.get('subnet'), dict):
        raise UserError(f'expected a dict with a subnet and numbers, got {short(record)}')
    return {name: value for name, value in record.items() if name != 'subnet'}


def _scored(record) -> dict:
    """Check a line of the history."""
    for name, value in _numbers(record).items():
        if name in _TEXTS and not isinstance(value, str):
            raise UserError(f'{name} must be a string, got {short(value)}')
        if name not in _TEXTS and not _is_number(value):
            raise UserError(f'{short(name)} must be a number, got {short(value)}')
    return record


def _is_of_random_search(line: dict) -> bool:
    """Whether a line is of the baseline, or of its finals."""
    return line.get('phase') == 'baseline' or (
        (line.get('phase'), line.get('generation')) == ('finals', 1)
    )


def _entry(record) -> dict:
    """Check an entry of the journal: its task's number, metrics and losses."""
    if not isinstance(record, dict) or not {'number', 'metrics', 'losses'} <= set(record):
        raise UserError(f'expected a dict with number, metrics and losses, got {short(record)}')
    natural(record['number'], 'number')
    metrics, losses, images = (record.get(key) for key in ('metrics', 'losses', 'images'))
    if not isinstance(metrics, dict) or not all(map(_is_number, metrics.values())):
        raise UserError(f'metrics must be a dict of numbers, got {short(metrics)}')
    try:
        expected = 4 * images[0] if losses is not None else 0
        is_whole = losses is None or len(b64decode(losses, validate=True)) == expected
    except (TypeError, ValueError, LookupError):
        is_whole = False
    if not is_whole:
        raise UserError(
            f'losses must be base64 of a float32 for each of the images {short(images)}, or None, '
            f'got {short(losses)}'
        )
    return record


def _is_number(value) -> bool:
    """Whether a value is a number that fits into a float."""
    return isinstance(value, float) or (type(value) is int and abs(value) < 10**300)


def _measurement(record) -> tuple[Subnet, dict[str, float]]:
    """Convert a line to a subnet and its costs."""
    costs = {name: bounded(value, name, inf) for name, value in _numbers(record).items()}
    return Subnet.from_dict(record['subnet']), costs


def _is_same(known: dict, line: dict) -> bool:
    """Whether two lines agree, up to the difference of scores between machines."""
    if set(known) != set(line) or any(known[key] != line[key] for key in _SAME):
        return False
    numbers = [(known[key], line[key]) for key in line if key not in (*_SAME, 'error')]
    return all(isclose(a, b, rel_tol=1e-3) or (isnan(a) and isnan(b)) for a, b in numbers)


def _identity(task: Task) -> dict:
    """Identify a task; its images are represented by a checksum."""
    images = None if task.images is None else np.asarray(task.images, '<i8')
    return dict(
        number=task.number,
        subnet=task.subnet.to_dict(),
        precision=task.precision,
        images=None if images is None else [len(images), crc32(images.tobytes())],
    )


def _unsealed(line: bytes) -> dict:
    """Parse a line of the journal, whose last item is the CRC-32 of the rest."""
    start, _, checksum = line.rpartition(_CHECKSUM)
    text = start + b'}'
    if checksum != b'%d}' % crc32(text):
        raise ValueError('does not match its CRC-32; without the file, all is evaluated again')
    return json.loads(text)
