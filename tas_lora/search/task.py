"""Tasks that a search gives to an executor, their outcomes, and the simplest executor."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ..structures import Subnet


@dataclass(frozen=True)
class Task:
    """A subnet to evaluate on some images.

    Args:
        number: Running number among all tasks of a search, from 0.
        subnet: Subnet to evaluate.
        precision: Floating-point precision of the forward pass.
        images: Indices of held-out images; None for all of them, with all metrics.
    """

    number: int
    subnet: Subnet
    precision: str = 'float32'
    images: np.ndarray | None = None


@dataclass(frozen=True)
class Outcome:
    """Result of a task: metrics, or losses per image; neither if memory ran out.

    ``seconds`` is the time that the evaluation took.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    losses: np.ndarray | None = None
    seconds: float = 0.0

    @property
    def is_empty(self) -> bool:
        """Whether nothing was evaluated."""
        return not self.metrics and self.losses is None


class Executor(Protocol):
    """Evaluates tasks, any number of them at a time.

    A task depends on nothing but its own fields, so an executor may evaluate it anywhere, and
    again if that fails.
    """

    def submit(self, task: Task) -> None:
        """Accept a task; returns at once."""

    def collect(self) -> tuple[Task, Outcome]:
        """Return a task that is done and its outcome; each submitted task once, in any order."""

    def usage(self) -> dict:
        """What the search notes at its end: at least the number of ``processes``."""


class InProcess:
    """Evaluates tasks in this process, in order.

    Args:
        evaluate: Returns the outcome of a task.
    """

    def __init__(self, evaluate: Callable[[Task], Outcome]):
        self.evaluate, self.waiting = evaluate, deque[Task]()

    def submit(self, task: Task) -> None:
        """Put a task at the end of the queue."""
        self.waiting.append(task)

    def collect(self) -> tuple[Task, Outcome]:
        """Evaluate the first task of the queue."""
        task = self.waiting.popleft()
        return task, self.evaluate(task)

    def usage(self) -> dict:
        """One process."""
        return dict(processes=1)
