"""Searches in a space of which every subnet's score is known."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from statistics import mean

import numpy as np

from tas_lora import SearchSpace, Subnet
from tas_lora.search.evolution import Evolution

POPULATION, GENERATIONS = 20, 3
KINDS = dict(
    evolution=dict(parents=5, mutations=10, crossovers=10),
    random=dict(parents=1, mutations=0, crossovers=0),  # what is not bred is drawn
)
SHARES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Scores:
    """What every subnet of a space has, in the order of ``list(space)``.

    Args:
        params: Parameters.
        loss: Held-out cross-entropy, which searches read.
        heldout: Held-out top-1, percent.
        test: Top-1 on the test set, percent, which none reads.
    """

    params: Sequence[int]
    loss: Sequence[float]
    heldout: Sequence[float]
    test: Sequence[float]


@dataclass(frozen=True)
class Found:
    """What a search ended with.

    Args:
        heldout: Held-out top-1 of the subnet found.
        test: Its top-1 on the test set.
        regret: Its held-out loss above the least within the budget.
        scored: How many subnets were scored.
    """

    heldout: float
    test: float
    regret: float
    scored: int


def search(space: SearchSpace, scores: Scores, kind: str, most: float, seed: int) -> Found:
    """One search among the subnets of at most ``most`` parameters.

    Args:
        space: The space.
        scores: Of all its subnets.
        kind: One of ``KINDS``; all score the same number of subnets.
        most: The budget.
        seed: Seed of its draws.
    """
    place = _places(space)
    evolution = Evolution(
        space,
        lambda subnet: scores.params[place[subnet]] <= most,
        POPULATION,
        GENERATIONS,
        seed=seed,
        **KINDS[kind],
    )
    while subnets := evolution.ask():
        evolution.tell({subnet: scores.loss[place[subnet]] for subnet in subnets})
    best = place[evolution.best(1)[0]]
    least = min(loss for loss, n in zip(scores.loss, scores.params, strict=True) if n <= most)
    regret = scores.loss[best] - least
    return Found(scores.heldout[best], scores.test[best], regret, len(evolution.scores))


def summary(space: SearchSpace, scores: Scores, seeds: Sequence[int]) -> list[dict]:
    """Mean over ``seeds`` of what searches find, a row for each budget and kind."""
    rows = []
    for share in SHARES:
        most = float(np.quantile(scores.params, share))
        for kind in KINDS:
            found = [search(space, scores, kind, most, seed) for seed in seeds]
            means = {f.name: mean(getattr(x, f.name) for x in found) for f in fields(Found)}
            exact = mean(x.regret == 0 for x in found)
            rows.append(dict(share=share, most=most, kind=kind, **means, found_the_best=exact))
    return rows


@lru_cache(maxsize=1)
def _places(space: SearchSpace) -> dict[Subnet, int]:
    return {subnet: i for i, subnet in enumerate(space)}
