"""Costs that are measured: each once, on disk at once, so that a resumed search sees the same."""

import json
from collections.abc import Callable, Iterable, Mapping
from math import inf
from pathlib import Path

from ..atomic_files import append_line
from ..checks import bounded, inside
from ..errors import UserError
from ..structures import Subnet
from .jsonl import open_lines, read_lines


def open_measured(path: str | Path, resume: bool) -> list[dict]:
    """The measurements to go on from; a torn last line is repaired, with a warning.

    Without ``resume`` there are none: those of an earlier search are moved aside, to a file that
    ends in ``.old``.

    Args:
        path: ``measured.jsonl`` of a search; it need not exist.
        resume: Whether to keep what is in it.

    Raises:
        UserError: If there is anything else in a line, with the number of the line.
    """
    return open_lines(path, resume, read_measured)


class Measured:
    """What subnets were measured to cost, on disk line by line.

    A second measurement would give another number, and with it another search. So each subnet is
    measured when it is first asked for, and never again.

    Args:
        path: ``measured.jsonl``. A line has ``subnet`` and each cost by its name, such as
            ``latency`` and ``latency_spread`` in ms and ``memory`` in MiB.
        measure: All costs of a subnet by name: numbers from 0, infinite if it cannot run.
        known: As for :meth:`recall`.
    """

    def __init__(
        self,
        path: str | Path,
        measure: Callable[[Subnet], Mapping[str, float]],
        known: Iterable[Mapping] = (),
    ):
        self.path, self.measure = Path(path), measure
        self.known: dict[Subnet, dict[str, float]] = {}
        self.recall(known)

    def recall(self, lines: Iterable[Mapping]) -> None:
        """Go on from what was measured before.

        Args:
            lines: All lines of the file, as :func:`open_measured` gives them.

        Raises:
            UserError: If a line is not of a subnet, or has a cost that is below 0 or NaN.
        """
        for number, line in enumerate(lines, 1):
            with inside(f'{self.path}, line {number}'):
                costs = {name: value for name, value in line.items() if name != 'subnet'}
                self.known.setdefault(Subnet.from_dict(line['subnet']), _checked(costs))

    def cost(self, name: str, subnet: Subnet) -> float:
        """One cost of ``subnet``, measured now if it never was.

        Raises:
            UserError: If that cost is none of those measured.
        """
        if subnet not in self.known:
            self._measure(subnet)
        costs = self.known[subnet]
        if name not in costs:
            raise UserError(
                f'{self.path} has no {name} of {subnet}, only {sorted(costs)}; search anew, '
                'without --resume'
            )
        return costs[name]

    def _measure(self, subnet: Subnet) -> None:
        costs = _checked(self.measure(subnet))
        append_line(self.path, json.dumps(dict(subnet=subnet.to_dict(), **costs)))
        self.known[subnet] = costs


def read_measured(path: str | Path) -> list[dict]:
    """What a search has measured, a dict for each subnet.

    Raises:
        UserError: If there is no such file, or anything else in it.
    """
    return read_lines(path, 'measurements')


def _checked(costs: Mapping[str, float]) -> dict[str, float]:
    return {name: bounded(value, name, inf) for name, value in costs.items()}
