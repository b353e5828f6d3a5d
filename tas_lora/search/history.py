"""The history of a search: a line for each subnet, written as it is scored, and read back."""

import json
import warnings
from pathlib import Path
from reprlib import repr as short

from ..errors import UserError
from ..files import append_line, write_atomic
from ..structures import Subnet


def open_history(path: str | Path, resume: bool) -> list[dict]:
    """The lines to go on from; a torn last one is repaired.

    Without ``resume`` there are none: those of an earlier search are moved aside, to a file that
    ends in ``.old``.
    """
    path = Path(path)
    if not resume and path.exists():
        path.replace(path.with_name(f'{path.name}.old'))
    if not path.exists() or not path.stat().st_size:
        return []
    lines = read_history(path)
    write_atomic(path, ''.join(json.dumps(line) + '\n' for line in lines))
    return lines


def read_history(path: str | Path) -> list[dict]:
    """What a search wrote of every subnet it scored, in order.

    A search that was killed may have left half a line at the end; it is left out with a warning.

    Args:
        path: ``search_history.jsonl`` of a search.

    Returns:
        A dict for each subnet: ``subnet``, the fields of a :class:`~tas_lora.Subnet`,
        ``precision``, and under any other name a number.

    Raises:
        UserError: If there is no such file, no line in it, or anything else in a line, with the
            number of the line.
    """
    try:
        *lines, rest = Path(path).read_bytes().split(b'\n')
    except (OSError, ValueError) as error:  # ValueError: a path that no system takes
        raise UserError(f'search history {path} cannot be read: {error}') from error
    if rest or (lines and not _is_json(lines[-1])):
        warnings.warn(f'{path}: the last line is torn, and left out', stacklevel=2)
        lines = lines if rest else lines[:-1]
    if not lines:
        raise UserError(f'{path} is empty: the search scored no subnet')
    return [_record(line, f'{path}, line {number}') for number, line in enumerate(lines, 1)]


class History:
    """What a search has found out so far, on disk line by line.

    A search that goes on asks for the same subnets in the same order again; those that have a
    line are not scored anew.

    Args:
        path: ``search_history.jsonl``.
        known: Its lines so far, as :func:`open_history` gives them.
    """

    def __init__(self, path: str | Path, known: list[dict]):
        self.path, self.known = Path(path), known
        self.place = 0  # of the next line

    def recall(self, subnet: Subnet, precision: str) -> dict | None:
        """The next line, if there is one; it must be of ``subnet`` at this precision.

        Raises:
            UserError: If it is of another, so that the history is of another search.
        """
        if self.place == len(self.known):
            return None
        line = self.known[self.place]
        if (line['subnet'], line.get('precision')) != (subnet.to_dict(), precision):
            raise UserError(
                f'{self.path}, line {self.place + 1} is not of the subnet that this search scores '
                'next: it is the history of another one; search anew, without --resume'
            )
        self.place += 1
        return line

    def append(self, line: dict, write: bool = True) -> None:
        """Add a line; of several processes one writes it, synced to disk."""
        if write:
            append_line(self.path, json.dumps(line))
        self.known.append(line)
        self.place += 1


def _record(line: bytes, where: str) -> dict:
    try:
        record = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f'{where} is no JSON: {error}') from error
    if not isinstance(record, dict) or not isinstance(record.get('subnet'), dict):
        raise UserError(f'{where} must be a dict with a subnet and numbers, got {short(record)}')
    for name, value in record.items():
        if name == 'precision' and not isinstance(value, str):
            raise UserError(f'{where}: precision must be a string, got {short(value)}')
        if name not in ('subnet', 'precision') and not _is_number(value):
            raise UserError(f'{where}: {short(name)} must be a number, got {short(value)}')
    return record


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line.decode())
    except (ValueError, RecursionError):
        return False
    return True


def _is_number(value) -> bool:
    """Whether it is a float, NaN too, or an integer that fits one."""
    return isinstance(value, float) or (type(value) is int and abs(value) < 10**300)
