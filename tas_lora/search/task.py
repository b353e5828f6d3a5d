"""What a search asks an evaluator, and what it is told."""

from dataclasses import dataclass, field

import numpy as np

from ..structures import Subnet


@dataclass(frozen=True)
class Task:
    """A subnet to evaluate on some images.

    Args:
        number: Place among all that a search evaluates, from 0.
        subnet: The subnet.
        precision: Of the forward.
        images: Indices of held-out images; None for all of them, with all metrics.
    """

    number: int
    subnet: Subnet
    precision: str = 'float32'
    images: np.ndarray | None = None


@dataclass(frozen=True)
class Outcome:
    """What a task gave: losses by image, or metrics; neither if memory did not suffice."""

    metrics: dict[str, float] = field(default_factory=dict)
    losses: np.ndarray | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing was evaluated."""
        return not self.metrics and self.losses is None
