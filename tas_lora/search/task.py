"""Tasks that a search gives to an evaluator, and their outcomes."""

from dataclasses import dataclass, field

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
    """Result of a task: metrics, or losses per image; neither if memory ran out."""

    metrics: dict[str, float] = field(default_factory=dict)
    losses: np.ndarray | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing was evaluated."""
        return not self.metrics and self.losses is None
