"""The history of a search: a line for each subnet, written as it is scored, and read back."""

import json
from math import isclose, isnan
from pathlib import Path

from ..atomic_files import append_line
from ..errors import UserError
from .jsonl import open_lines, read_lines

_SAME = ('subnet', 'phase', 'generation', 'precision')  # of a search that goes on
_TEXTS = ('phase', 'precision')


def open_history(path: str | Path, resume: bool) -> list[dict]:
    """The lines to go on from; a torn last one is repaired.

    Without ``resume`` there are none: those of an earlier search are moved aside, to a file that
    ends in ``.old``.
    """
    return open_lines(path, resume, read_history)


def read_history(path: str | Path) -> list[dict]:
    """What a search wrote of every subnet it scored, in order.

    A search that was killed may have left half a line at the end; it is left out with a warning.

    Args:
        path: ``search_history.jsonl`` of a search.

    Returns:
        A dict for each subnet: ``subnet``, the fields of a :class:`~tas_lora.Subnet`, ``phase``
        ('search', 'baseline' or 'finals'), ``precision``, and under any other name a number:
        ``generation``, ``images`` that the score rests on, its standard ``error`` (0 where that
        is all of them), costs and metrics.

    Raises:
        UserError: If there is no such file, no line in it, or anything else in a line, with the
            number of the line.
    """
    lines = read_lines(path, 'search history', _TEXTS)
    if not lines:
        raise UserError(f'{path} is empty: the search scored no subnet')
    return lines


class History:
    """The lines of a search, on disk as they come.

    A search that goes on writes the same lines in the same order again; those that are there
    already are compared and not written anew.

    Args:
        path: ``search_history.jsonl``.
        known: Its lines so far, as :func:`open_history` gives them.
    """

    def __init__(self, path: str | Path, known: list[dict]):
        self.path, self.known = Path(path), known
        self.place = 0  # of the next line

    def add(self, line: dict) -> None:
        """Write the next line, synced to disk, or compare it with the one that is there.

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


def _is_same(known: dict, line: dict) -> bool:
    """Whether two lines agree; scores may differ as they do between machines."""
    if any(known.get(key) != line[key] for key in _SAME) or set(known) != set(line):
        return False
    numbers = [key for key in line if key not in _SAME and key != 'error']
    return all(
        isclose(known[key], line[key], rel_tol=1e-3) or isnan(line[key]) and isnan(known[key])
        for key in numbers
    )
