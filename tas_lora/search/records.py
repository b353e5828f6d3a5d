"""What a search has found so far, on disk as lines of JSON: history, journal and measurements.

The files only grow, a line at a time, each synced. A search that was killed may leave half a line
at the end; it is cut off before the next one is written.
"""

import json
import os
import warnings
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from math import inf, isclose, isnan
from pathlib import Path
from reprlib import repr as short
from zlib import crc32

import numpy as np

from ..atomic_files import append_line
from ..checks import bounded, inside
from ..errors import UserError
from ..structures import Subnet
from .task import Outcome, Task

_TEXTS = ('phase', 'precision')
_SAME = ('subnet', 'generation', *_TEXTS)  # in the lines of a resumed search
_CHECKSUM = b', "crc32": '


def read_history(path: str | Path) -> list[dict]:
    """What a search wrote of every subnet it scored, in order.

    Half a line at the end, as a killed search leaves it, is left out with a warning.

    Args:
        path: ``search_history.jsonl`` of a search.

    Returns:
        A dict for each subnet: ``subnet``, the fields of a :class:`~tas_lora.Subnet`, ``phase``
        ('search', 'baseline' or 'finals'), ``precision``, and under any other name a number:
        ``generation``, ``images`` that the score rests on, its standard ``error`` (0 where that
        is all of them), costs and metrics.

    Raises:
        UserError: If the file cannot be read, has no line, or has anything else in a line.
    """
    lines = _read(path, 'search history', check=_scored)
    if not lines:
        raise UserError(f'{path} is empty: the search scored no subnet')
    return lines


class History:
    """The lines of a search, on disk as they come.

    A resumed search scores the same subnets in the same order: its lines are compared with those
    on disk, and written where these end.

    Args:
        path: ``search_history.jsonl``, which need not exist.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.known = _read(self.path, 'search history', check=_scored, resume=True)
        self.place = 0  # of the next line

    def add(self, line: dict) -> None:
        """Write the next line, or compare it with the one on disk.

        Raises:
            UserError: If that is of another subnet, so that the history is of another search.
        """
        if self.place == len(self.known):
            append_line(self.path, json.dumps(line))
            self.known.append(line)
        elif not _is_same(self.known[self.place], line):
            raise UserError(
                f'{self.path}, line {self.place + 1} is not of the subnet that this search scores '
                'next, or has other numbers: it is the history of another one; search anew, '
                'without --resume'
            )
        self.place += 1


class Journal:
    """Outcomes of tasks, on disk as they come; a resumed search recalls them.

    Args:
        path: ``search_journal.jsonl``, which need not exist. A line has the task, of its images a
            checksum; the metrics; the losses, float32 in base64; and the CRC-32 of all these.

    Raises:
        UserError: If it cannot be read, or a line was changed.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        entries = _read(self.path, 'search journal', _unsealed, resume=True)
        self.known = {entry['number']: entry for entry in entries}

    def recall(self, task: Task) -> Outcome | None:
        """The outcome of a task, None if it is not known.

        Raises:
            UserError: If the journal has it of another subnet or other images.
        """
        entry = self.known.get(task.number)
        if entry is None:
            return None
        if any(entry[key] != value for key, value in _identity(task).items()):
            raise UserError(
                f'{self.path}: entry {task.number} is not of the subnet and images that this '
                'search evaluates next: it is the journal of another one; search anew, without '
                '--resume'
            )
        losses = entry['losses']
        losses = None if losses is None else np.frombuffer(b64decode(losses), '<f4')
        return Outcome(entry['metrics'], losses)

    def append(self, task: Task, outcome: Outcome) -> None:
        """Write the outcome of a task."""
        losses = outcome.losses
        if losses is not None:
            losses = b64encode(losses.astype('<f4').tobytes()).decode()
        entry = dict(_identity(task), metrics=outcome.metrics, losses=losses)
        append_line(self.path, _sealed(json.dumps(entry)))


class Measured:
    """What subnets were measured to cost, on disk line by line.

    A second measurement would give another number, and with it another search. So each subnet is
    measured when it is first asked for, and never again.

    Args:
        path: ``measured.jsonl``. A line has ``subnet`` and each cost by its name, such as
            ``latency`` and ``latency_spread`` in ms and ``memory`` in MiB.
        measure: All costs of a subnet by name: numbers from 0, infinite if it cannot run.
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
        """Take over what is on disk.

        Raises:
            UserError: As :func:`read_measured`, but the file need not exist.
        """
        own = _read(self.path, 'measurements', check=_measurement, resume=True)
        self.known = dict(own) | self.known

    def cost(self, name: str, subnet: Subnet) -> float:
        """One cost of ``subnet``, measured now if it never was.

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
                f'{self.path} has no {name} of {subnet}, only {sorted(costs)}; search anew, '
                'without --resume'
            )
        return costs[name]


def read_measured(path: str | Path) -> dict[Subnet, dict[str, float]]:
    """What a search has measured: costs by name, of each subnet.

    Raises:
        UserError: If the file cannot be read, or a line is not of a subnet and numbers from 0.
    """
    return dict(_read(path, 'measurements', check=_measurement))


def _read(
    path: str | Path,
    what: str,
    parse: Callable[[bytes], object] = json.loads,
    check: Callable = lambda record: record,
    resume: bool = False,
) -> list:
    """What the lines of a file hold, each as ``check`` returns it.

    Half a line at the end, which ``parse`` refuses, is left out with a warning. To ``resume``,
    that half is cut off the file, which need not exist.
    """
    if resume and not Path(path).exists():
        return []
    try:
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path that no system takes
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
        warnings.warn(f'{path}: the last line is torn, and left out', stacklevel=3)
        if resume:
            os.truncate(path, len(content) - len(rest))
    for place, record in enumerate(found):
        with inside(f'{path}, line {place + 1}'):
            found[place] = check(record)
    return found


def _numbers(record) -> dict:
    """All of a line but its subnet."""
    if not isinstance(record, dict) or not isinstance(record.get('subnet'), dict):
        raise UserError(f'expected a dict with a subnet and numbers, got {short(record)}')
    return {name: value for name, value in record.items() if name != 'subnet'}


def _scored(record) -> dict:
    """A line of the history, checked."""
    for name, value in _numbers(record).items():
        if name in _TEXTS and not isinstance(value, str):
            raise UserError(f'{name} must be a string, got {short(value)}')
        if name not in _TEXTS and not _is_number(value):
            raise UserError(f'{short(name)} must be a number, got {short(value)}')
    return record


def _measurement(record) -> tuple[Subnet, dict[str, float]]:
    """A subnet and its costs."""
    costs = {name: bounded(value, name, inf) for name, value in _numbers(record).items()}
    return Subnet.from_dict(record['subnet']), costs


def _is_number(value) -> bool:
    """Whether it is a float, NaN too, or an integer that fits one."""
    return isinstance(value, float) or (type(value) is int and abs(value) < 10**300)


def _is_same(known: dict, line: dict) -> bool:
    """Whether two lines agree; scores may differ as they do between machines."""
    if set(known) != set(line) or any(known[key] != line[key] for key in _SAME):
        return False
    numbers = [(known[key], line[key]) for key in line if key not in (*_SAME, 'error')]
    return all(isclose(a, b, rel_tol=1e-3) or (isnan(a) and isnan(b)) for a, b in numbers)


def _identity(task: Task) -> dict:
    """What tells a task from others of the same number, of the images a checksum."""
    images = None if task.images is None else np.asarray(task.images, '<i8')
    return dict(
        number=task.number,
        subnet=task.subnet.to_dict(),
        precision=task.precision,
        images=None if images is None else [len(images), crc32(images.tobytes())],
    )


def _sealed(text: str) -> str:
    """A dict as JSON, with its CRC-32 as the last item."""
    return f'{text[:-1]}{_CHECKSUM.decode()}{crc32(text.encode())}}}'


def _unsealed(line: bytes) -> dict:
    """Inverse of :func:`_sealed`."""
    start, _, checksum = line.rpartition(_CHECKSUM)
    text = start + b'}'
    if checksum != b'%d}' % crc32(text):
        raise ValueError('it does not match its CRC-32; without the file, all is evaluated again')
    return json.loads(text)
