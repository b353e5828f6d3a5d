"""Records of trainings, a line of JSON each; all tables and figures are made of them alone."""

import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tas_lora import UserError
from tas_lora.atomic_files import append_line, write_atomic

from .methods import METHODS, SETS


def read_records(path: Path) -> dict[str, dict]:
    """The records in a file by the name of their run; none if there is no file.

    A last line that a killed process left unfinished is no record.

    Raises:
        UserError: If another line is not a record.
    """
    if not path.is_file():
        return {}
    found = {}
    for number, line in enumerate(path.read_text().split('\n')[:-1], 1):
        try:
            record = json.loads(line)
            found[_name_of(record)] = record
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f'line {number} of {path} is not a record; remove it') from error
    return found


def _name_of(record: Mapping) -> str:
    """The run's name, which is a folder's as well; it must be that of a run of the study."""
    data, method, seed = (record[key] for key in ('data', 'method', 'seed'))
    if data not in SETS or method not in METHODS or type(seed) is not int:
        raise ValueError(f'there is no run of {method} on {data} with seed {seed}')
    rates = r'(_(rate|alpha)[0-9.e-]+)*'
    if not re.fullmatch(f'{data}_{method}{rates}_seed{seed}', record['run']):
        raise ValueError('the name is of another run')
    return record['run']


def add_record(path: Path, record: Mapping) -> None:
    """Append a record to a file, which is created if need be, in place of an unfinished line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.parent):
        whole, end, rest = (path.read_text() if path.is_file() else '').rpartition('\n')
        if rest:
            write_atomic(path, whole + end)
        append_line(path, json.dumps(record, separators=(',', ':')))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait until no other process writes to a file in the folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def rounded(value, digits: int = 4):
    """Numbers inside lists and dicts, rounded to decimals; to digits below 1, such as 1e-5."""
    if isinstance(value, Mapping):
        return {key: rounded(one, digits) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one, digits) for one in value]
    if not isinstance(value, float):
        return value
    return round(value, digits) if abs(value) >= 1 else float(f'{value:.{digits}g}')
