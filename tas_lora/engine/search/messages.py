"""What the ranks of a search tell each other, as JSON and raw numbers.

Not as pickles, which would run what whoever reaches the port of the store has put there.
"""

import json

import numpy as np

from ...search import Outcome, Task
from ...structures import Subnet


def pack(message: dict, numbers: np.ndarray | None = None) -> bytes:
    """A dict that JSON takes, and an array of numbers."""
    kind = None if numbers is None else numbers.dtype.str
    content = b'' if numbers is None else numbers.tobytes()
    return json.dumps([message, kind]).encode() + b'\n' + content


def unpack(content: bytes) -> tuple[dict, np.ndarray | None]:
    """Inverse of :func:`pack`."""
    text, _, rest = content.partition(b'\n')
    message, kind = json.loads(text)
    return message, None if kind is None else np.frombuffer(rest, np.dtype(kind))


def pack_tasks(tasks: list[Task]) -> bytes:
    """Tasks of one round, which are alike in precision and images."""
    first = tasks[0]
    message = dict(
        numbers=[task.number for task in tasks],
        subnets=[task.subnet.to_dict() for task in tasks],
        precision=first.precision,
    )
    return pack(message, first.images)


def unpack_tasks(message: dict, images: np.ndarray | None) -> list[Task]:
    """Inverse of :func:`pack_tasks`, of what :func:`unpack` gives."""
    pairs = zip(message['numbers'], message['subnets'], strict=True)
    precision = message['precision']
    return [Task(n, Subnet.from_dict(subnet), precision, images) for n, subnet in pairs]


def pack_outcome(place: int, outcome: Outcome) -> bytes:
    """The outcome of a round's task."""
    return pack(dict(place=place, metrics=outcome.metrics), outcome.losses)


def unpack_outcome(message: dict, losses: np.ndarray | None) -> tuple[int, Outcome]:
    """Inverse of :func:`pack_outcome`, of what :func:`unpack` gives."""
    return message['place'], Outcome(message['metrics'], losses)
