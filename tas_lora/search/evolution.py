"""Evolutionary search over subnets with an ask-and-tell interface; needs no model or runner."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from math import isnan

import numpy as np

from ..checks import bounded, natural, positive
from ..errors import UserError
from ..structures import SearchSpace, Subnet
from .surrogate import Surrogate


class Evolution:
    """AutoFormer's evolutionary search (TAS-LoRA, Algorithm 2); lower scores are better.

    Usage::

        while subnets := evolution.ask():
            evolution.tell({subnet: score(subnet) for subnet in subnets})

    Every subnet that :meth:`ask` returns is new and feasible. Parents are the best subnets seen so
    far. The last children are also ranked; the official code evaluates and then forgets them.
    Generation g draws from ``default_rng((seed, g))``, so the scores are the only state.

    With an ``overlap``, that many further generations are asked for before the first is told, and
    so many idle workers find work. Generation g is then bred from the scores of generations up to
    g - 1 - overlap, whatever finishes first. The first ``overlap + 1`` generations are random.

    Args:
        space: Search space.
        is_feasible: Whether a subnet meets the constraints; called often, so it must be fast.
        population: Subnets per generation.
        generations: Number of generations; after these, :meth:`ask` returns an empty list.
        parents: Number of the best subnets that have children.
        mutations: Children by mutation per generation.
        crossovers: Children by crossover per generation.
        gene_prob: Probability that mutation redraws a block's heads or MLP ratio.
        shape_prob: Probability that mutation redraws the depth, and the width.
        seed: Seed of all draws.
        surrogate: Learns from every score. While it is trusted, it selects the children. Any object
            with ``is_trusted``, ``learn`` and ``select`` works.
        oversample: Children drawn for each one that a trusted surrogate selects.
        overlap: Generations that are evaluated along with an earlier one.

    Raises:
        UserError: If a size is not a positive integer, or the children exceed the population.
    """

    # Failed draws in a row after which the space counts as exhausted.
    PATIENCE = 5000

    def __init__(
        self,
        space: SearchSpace,
        is_feasible: Callable[[Subnet], bool],
        population: int = 50,
        generations: int = 20,
        parents: int = 10,
        mutations: int = 25,
        crossovers: int = 25,
        gene_prob: float = 0.2,
        shape_prob: float = 0.4,
        seed: int = 0,
        surrogate: Surrogate | None = None,
        oversample: int = 4,
        overlap: int = 0,
    ):
        self.space = space
        self.is_feasible = is_feasible
        self.population = positive(population, 'population', int)
        self.generations = positive(generations, 'generations', int)
        self.parents = positive(parents, 'parents', int)
        self.mutations = natural(mutations, 'mutations')
        self.crossovers = natural(crossovers, 'crossovers')
        self.gene_prob = bounded(gene_prob, 'gene_prob')
        self.shape_prob = bounded(shape_prob, 'shape_prob')
        self.seed = natural(seed, 'seed')
        self.surrogate = surrogate
        self.oversample = positive(oversample, 'oversample', int)
        self.overlap = natural(overlap, 'overlap', most=self.generations - 1)
        if self.mutations + self.crossovers > self.population:
            raise UserError(
                f'{mutations} mutations and {crossovers} crossovers exceed the population of '
                f'{population}; lower them or raise population'
            )
        self.generation = 0
        self.scores: dict[Subnet, float] = {}
        self.ahead: dict[Subnet, None] = {}  # asked for before the latest ask, and not told yet

    def ask(self, ahead: Sequence[Sequence[Subnet]] = ()) -> list[Subnet]:
        """Return the next generation; empty if the search is over or the space is exhausted.

        Args:
            ahead: Generations that were asked for and not told yet, which come before this one.
        """
        generation = self.generation + len(ahead)
        if generation >= self.generations:
            return []
        rng = np.random.default_rng((self.seed, generation))
        self.ahead = dict.fromkeys(chain(*ahead))
        chosen: dict[Subnet, None] = {}  # a set that keeps its order
        self._breed(rng, chosen)
        self._complete(rng, chosen)
        return list(chosen)[: self.population]

    def tell(self, scores: dict[Subnet, float]) -> None:
        """Record the scores of a generation. NaN ranks last."""
        self.scores.update(scores)
        self.generation += 1
        if self.surrogate is not None:
            self.surrogate.learn(scores)

    def best(self, count: int) -> list[Subnet]:
        """Return the ``count`` best subnets so far; of equals the older comes first."""
        ranked = sorted(self.scores, key=lambda s: (isnan(self.scores[s]), self.scores[s]))
        return ranked[:count]

    def _breed(self, rng: np.random.Generator, chosen: dict) -> None:
        """Add children of the best scored subnets."""
        if self.scores:
            elite = self.best(self.parents)
            self._add_children(self._mutants(elite, rng), self.mutations, chosen)
            self._add_children(self._crosses(elite, rng), self.crossovers, chosen)

    def _add_children(self, draws: Iterator[Subnet], wanted: int, chosen: dict) -> None:
        """Add up to ``wanted`` children, chosen from more draws by a trusted surrogate."""
        trusted = self.surrogate is not None and self.surrogate.is_trusted
        drawn, most = dict(chosen), wanted * (self.oversample if trusted else 1)
        self._take(draws, most, 10 * most, drawn)  # AutoFormer gives up after ten draws per child
        children = list(drawn)[len(chosen) :]
        if trusted:
            children = self.surrogate.select(children, wanted)
        chosen.update(dict.fromkeys(children))

    def _complete(self, rng: np.random.Generator, chosen: dict) -> None:
        """Fill the population with random draws or, if these fail, mutants of feasible subnets."""
        self._fill(self._randoms(rng), chosen)
        if len(chosen) < self.population:
            self._take(iter((self.space.smallest(), self.space.largest())), 2, 2, chosen)
            known = [*self.best(self.parents), *self.ahead, *chosen]
            if known:
                self._fill(self._mutants(known, rng), chosen)

    def _take(self, draws: Iterator[Subnet], wanted: int, limit: int, chosen: dict) -> None:
        """Add up to ``wanted`` new feasible subnets from at most ``limit`` draws."""
        goal = len(chosen) + wanted
        for subnet in islice(draws, limit):
            known = any(subnet in some for some in (self.scores, self.ahead, chosen))
            if not known and self.is_feasible(subnet):
                chosen[subnet] = None
                if len(chosen) == goal:
                    return

    def _fill(self, draws: Iterator[Subnet], chosen: dict) -> None:
        """Fill the population until ``PATIENCE`` draws in a row fail."""
        before = -1
        while before < len(chosen) < self.population:
            before = len(chosen)
            self._take(draws, 1, self.PATIENCE, chosen)

    def _mutants(self, elite: list[Subnet], rng: np.random.Generator) -> Iterator[Subnet]:
        while True:
            parent = elite[rng.integers(len(elite))]
            yield self.space.mutate(parent, rng, self.gene_prob, self.shape_prob)

    def _crosses(self, elite: list[Subnet], rng: np.random.Generator) -> Iterator[Subnet]:
        while True:
            a, b = (elite[i] for i in rng.integers(len(elite), size=2))
            if a.depth == b.depth:
                yield self.space.crossover(a, b, rng)

    def _randoms(self, rng: np.random.Generator) -> Iterator[Subnet]:
        while True:
            yield self.space.sample(rng)
