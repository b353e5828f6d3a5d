"""Files with a line of JSON for each subnet: read back, whatever moment their writer was killed."""

import json
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from reprlib import repr as short

from ..atomic_files import write_atomic
from ..errors import UserError


def open_lines(
    path: str | Path, resume: bool, read: Callable[[str | Path], list[dict]]
) -> list[dict]:
    """The lines to go on from; a torn last one is repaired.

    Without ``resume`` there are none: those of an earlier search are moved aside, to a file that
    ends in ``.old``.

    Args:
        path: The file; it need not exist.
        resume: Whether to keep what is in it.
        read: Reads the lines of such a file.
    """
    path = Path(path)
    if not resume and path.exists():
        path.replace(path.with_name(f'{path.name}.old'))
    if not path.exists() or not path.stat().st_size:
        return []
    if b'\n' not in path.read_bytes():  # the first line was being written
        warnings.warn(f'{path}: the last line is torn, and left out', stacklevel=3)
        path.write_bytes(b'')
        return []
    lines = read(path)
    write_atomic(path, ''.join(json.dumps(line) + '\n' for line in lines))
    return lines


def read_lines(path: str | Path, what: str, texts: Collection[str] = ()) -> list[dict]:
    """The records of a file, in order; half a line at its end is left out with a warning.

    Args:
        path: The file.
        what: What it is called in messages, like 'search history'.
        texts: Names of the fields that are strings.

    Returns:
        A dict for each line: ``subnet``, a dict, strings under ``texts``, else numbers.

    Raises:
        UserError: If there is no such file, or anything else in a line, with its number.
    """
    try:
        *lines, rest = Path(path).read_bytes().split(b'\n')
    except (OSError, ValueError) as error:  # ValueError: a path that no system takes
        raise UserError(f'{what} {path} cannot be read: {error}') from error
    if rest or (lines and not _is_json(lines[-1])):
        warnings.warn(f'{path}: the last line is torn, and left out', stacklevel=3)
        lines = lines if rest else lines[:-1]
    return [_record(line, f'{path}, line {number}', texts) for number, line in enumerate(lines, 1)]


def _record(line: bytes, where: str, texts: Collection[str]) -> dict:
    try:
        record = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f'{where} is no JSON: {error}') from error
    if not isinstance(record, dict) or not isinstance(record.get('subnet'), dict):
        raise UserError(f'{where} must be a dict with a subnet and numbers, got {short(record)}')
    for name, value in record.items():
        if name in texts and not isinstance(value, str):
            raise UserError(f'{where}: {name} must be a string, got {short(value)}')
        if name != 'subnet' and name not in texts and not _is_number(value):
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
