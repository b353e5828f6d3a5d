"""NSGA-II over subnets with an ask-and-tell interface: a front of score against costs."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from ..errors import UserError
from ..structures import SearchSpace, Subnet
from .evolution import Evolution


class NSGA2(Evolution):
    """NSGA-II (Deb et al. 2002) instead of AutoFormer's choice of parents and children.

    Use it like :class:`Evolution`; the same guarantees hold: every subnet from :meth:`ask` is new
    and feasible, generation g draws from ``default_rng((seed, g))``, and under tight limits
    mutants of feasible subnets fill the population. pymoo does the selection: parents win
    tournaments by dominance, then by crowding distance, and the population survives by rank.
    A subnet with a score or cost that is not finite has no children.

    Args:
        costs: Costs to minimise along with the score, such as ``dict(params=count_params)``.
        population: Subnets per generation, and the maximum number of parents.

    The other arguments are those of :class:`Evolution`.

    Raises:
        UserError: If a number is out of range, a cost is missing, or pymoo is not installed.
    """

    TRIES = 10  # mutants of a child to draw until one is new and feasible
    ROUNDS = 10  # matings per generation while children are missing

    def __init__(
        self,
        space: SearchSpace,
        is_feasible: Callable[[Subnet], bool],
        costs: Mapping[str, Callable[[Subnet], float]],
        population: int = 50,
        generations: int = 20,
        gene_prob: float = 0.2,
        shape_prob: float = 0.4,
        seed: int = 0,
    ):
        super().__init__(
            space,
            is_feasible,
            population=population,
            generations=generations,
            mutations=0,
            crossovers=0,
            gene_prob=gene_prob,
            shape_prob=shape_prob,
            seed=seed,
        )
        if not isinstance(costs, Mapping) or not costs or not all(map(callable, costs.values())):
            raise UserError(
                f'nsga2.costs must be like dict(params=count_params), not empty; got {costs!r}'
            )
        self.costs = dict(costs)
        self._engine = _engine(self)

    def tell(self, scores: Mapping[Subnet, float]) -> None:
        """Record the scores of a generation; the best of it and of the parents survive."""
        rng = np.random.default_rng((self.seed, self.generation, 1))
        super().tell(scores)
        goals = {
            subnet: [score, *(cost(subnet) for cost in self.costs.values())]
            for subnet, score in scores.items()
        }
        finite = {subnet: row for subnet, row in goals.items() if np.isfinite(row).all()}
        if finite:
            from pymoo.core.population import Population

            told = Population.new('X', _column(finite), 'F', np.array([*finite.values()], float))
            self._engine.random_state = rng
            with _numpy_seeded(rng):
                self._engine.tell(infills=told)

    def is_new(self, subnet: Subnet) -> bool:
        """Whether ``subnet`` has no score yet and meets the constraints."""
        return subnet not in self.scores and self.is_feasible(subnet)

    def cross(self, a: Subnet, b: Subnet, rng: np.random.Generator) -> Subnet:
        """Return a child of both parents, or ``a`` if they differ in depth."""
        return self.space.crossover(a, b, rng) if a.depth == b.depth else a

    def mutate(self, subnet: Subnet, rng: np.random.Generator) -> Subnet:
        """Return a new and feasible mutant, or ``subnet`` itself after ``TRIES`` failures."""
        for _ in range(self.TRIES):
            mutant = self.space.mutate(subnet, rng, self.gene_prob, self.shape_prob)
            if self.is_new(mutant):
                return mutant
        return subnet

    def sample(self, count: int, rng: np.random.Generator) -> list[Subnet]:
        """Draw up to ``count`` random subnets that are new and feasible."""
        drawn: dict[Subnet, None] = {}
        self._take(self._randoms(rng), count, self.TRIES * count, drawn)
        return list(drawn)

    def _breed(self, rng: np.random.Generator, chosen: dict) -> None:
        self._engine.random_state = rng
        with _numpy_seeded(rng):
            children = self._engine.ask()
        if children is not None:  # None if mating brought nothing new
            chosen.update(dict.fromkeys(child.X[0] for child in children))


def _engine(search: NSGA2):
    """Set up pymoo's algorithm with operators for subnets."""
    try:
        from pymoo.algorithms.moo import nsga2
        from pymoo.core.problem import Problem
        from pymoo.core.termination import NoTermination
    except ImportError as error:
        raise UserError('NSGA-II needs pymoo: pip install "tas-lora[search]"') from error
    algorithm = nsga2.NSGA2(pop_size=search.population, **_operators(search))
    algorithm.mating.n_max_iterations = search.ROUNDS
    problem = Problem(n_var=1, n_obj=1 + len(search.costs), vtype=object)
    return algorithm.setup(problem, termination=NoTermination())  # generations are counted here


def _operators(search: NSGA2) -> dict:
    """Wrap the draws of ``search`` in pymoo's operators; an individual is a row with one subnet."""
    from pymoo.core.crossover import Crossover
    from pymoo.core.duplicate import DuplicateElimination
    from pymoo.core.mutation import Mutation
    from pymoo.core.sampling import Sampling

    class Sample(Sampling):
        def _do(self, problem, n_samples, *args, algorithm, **kwargs):
            return _column(search.sample(n_samples, algorithm.random_state))

    class Cross(Crossover):
        def _do(self, problem, parents, *args, algorithm, **kwargs):  # (2, n, 1) -> (1, n, 1)
            rng, pairs = algorithm.random_state, parents[:, :, 0].T
            return _column(search.cross(a, b, rng) for a, b in pairs)[None]

    class Mutate(Mutation):
        def _do(self, problem, children, *args, algorithm, **kwargs):
            return _column(search.mutate(child, algorithm.random_state) for child in children[:, 0])

    class OnlyNew(DuplicateElimination):
        def _do(self, children, others, is_duplicate):
            """Also drop subnets scored before, and children that mutation could not make new."""
            known = set() if others is None else {other.X[0] for other in others}
            for i, (child,) in enumerate(children.get('X')):
                is_duplicate[i] = child in known or not search.is_new(child)
                known.add(child)
            return is_duplicate

    return dict(
        sampling=Sample(),
        crossover=Cross(n_parents=2, n_offsprings=1, prob=1.0),
        mutation=Mutate(prob=1.0),
        eliminate_duplicates=OnlyNew(),
    )


def _column(subnets: Iterable[Subnet]) -> np.ndarray:
    """Put subnets into an object array, (n, 1)."""
    subnets = list(subnets)
    column = np.empty((len(subnets), 1), object)
    column[:, 0] = subnets
    return column


@contextmanager
def _numpy_seeded(rng: np.random.Generator) -> Iterator[None]:
    """Seed NumPy's global generator, which pymoo before 0.6.1.6 uses, and restore it afterwards."""
    before = np.random.get_state()
    np.random.seed(rng.integers(2**32))
    try:
        yield
    finally:
        np.random.set_state(before)
