"""How long a search takes with more workers: its own code, on workers that are simulated."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from pathlib import Path
from tempfile import TemporaryDirectory
from zlib import crc32

import numpy as np

from ..errors import UserError
from ..search import (
    CandidateScorer,
    Evolution,
    History,
    Journal,
    Journalled,
    Limits,
    Outcome,
    RaceRules,
    Task,
    read_history,
    read_journal,
)
from ..structures import SearchSpace, Subnet

PLACES = ('first generation', 'slices', 'ends of generations', 'finals')


class SimulatedWorkers:
    """An :class:`~tas_lora.search.Executor` whose clock moves from one end of a task to the next.

    On this clock the search itself takes no time.

    Args:
        workers: Number of workers; each takes the next task when it is free.
        seconds: Seconds that a task takes.
        outcome: Outcome of a task.

    Attributes:
        now: Seconds since the start.
        busy: Seconds spent on tasks, over all workers.
        own: Real seconds that the simulation takes, without those of the search.
    """

    def __init__(
        self, workers: int, seconds: Callable[[Task], float], outcome: Callable[[Task], Outcome]
    ):
        self.workers, self.seconds, self.outcome = workers, seconds, outcome
        self.now = self.busy = self.idle = self.own = 0.0
        self.waiting = deque[Task]()
        self.ends: list[tuple[float, int, Task]] = []  # a heap
        self.barriers: list[float] = []  # idle seconds up to each moment without a task

    def submit(self, task: Task) -> None:
        """As :class:`~tas_lora.search.Executor`."""
        self.waiting.append(task)
        self._hand_out()

    def collect(self) -> tuple[Task, Outcome]:
        """As :class:`~tas_lora.search.Executor`; moves the clock to the end of a task."""
        start = time.perf_counter()
        self.idle += (self.workers - len(self.ends)) * (self.ends[0][0] - self.now)
        self.now, _, task = heappop(self.ends)
        self._hand_out()
        if not self.ends:
            self.barriers.append(self.idle)
            self.idle = 0.0
        outcome = self.outcome(task)
        self.own += time.perf_counter() - start
        return task, outcome

    def usage(self) -> dict:
        """As :class:`~tas_lora.search.Executor`."""
        return dict(processes=self.workers)

    def lost(self) -> list[float]:
        """Idle seconds since the last call, up to each moment at which no task was left."""
        found = [*self.barriers, self.idle] if self.idle else self.barriers or [0.0]
        self.barriers, self.idle = [], 0.0
        return found

    def _hand_out(self) -> None:
        while self.waiting and len(self.ends) < self.workers:
            task = self.waiting.popleft()
            seconds = self.seconds(task)
            self.busy += seconds
            heappush(self.ends, (self.now + seconds, task.number, task))


@dataclass(frozen=True)
class TaskTimes:
    """Seconds of a task: ``(start + rate * work) * noise``, work being FLOPs times images.

    Args:
        start: Seconds that a task takes on no image, such as to merge the experts.
        rate: Seconds per FLOP of an image.
        noise: Ratios of recorded to expected seconds; each task draws one.
        slow: Share of the tasks that are slowed down further, as on a shared machine: by a factor
            that is at least 2, at most 20, with the tail of a Pareto distribution of shape 1.5.
    """

    start: float
    rate: float
    noise: np.ndarray
    slow: float = 0.0

    @classmethod
    def of(cls, folder: str | Path, slow: float = 0.0) -> 'TaskTimes':
        """Fit the tasks in the work directory of a search.

        Raises:
            UserError: If journal or history cannot be read, or no task has a time.
        """
        lines = read_history(Path(folder) / 'search_history.jsonl')
        flops = {str(line['subnet']): line['flops'] for line in lines}
        whole = max(line['images'] for line in lines)
        tasks = [
            (flops[subnet] * (whole if task['images'] is None else task['images'][0]), seconds)
            for task in read_journal(Path(folder) / 'search_journal.jsonl')
            if (subnet := str(task['subnet'])) in flops and (seconds := task.get('seconds', 0.0))
        ]
        if not tasks:
            raise UserError(f'{folder}: no task has a time; record a search with this version')
        return cls.fit(*np.array(tasks).T, slow)

    @classmethod
    def fit(cls, work: np.ndarray, seconds: np.ndarray, slow: float = 0.0) -> 'TaskTimes':
        """Fit by the medians of Theil and Sen, which a few slow tasks do not move."""
        one, other = np.random.default_rng(0).integers(len(work), size=(2, 20_000))
        differ = work[one] != work[other]
        one, other = one[differ], other[differ]
        slopes = (seconds[one] - seconds[other]) / (work[one] - work[other])
        rate = max(float(np.median(slopes)), 0.0) if len(slopes) else 0.0
        start = max(float(np.median(seconds - rate * work)), 0.0)
        return cls(start, rate, seconds / (start + rate * work), slow)

    def draw(self, work: float, number: int) -> float:
        """Seconds of task ``number``, the same at each call."""
        rng = np.random.default_rng((0, number))
        factor = rng.choice(self.noise)
        if rng.random() < self.slow:
            factor *= min(2 * (1 + rng.pareto(1.5)), 20)
        return (self.start + self.rate * work) * factor


class Landscape:
    """Losses that differ between subnets and images about as those of Fashion-MNIST do.

    Each gene adds to a subnet's loss. On a single image two subnets differ by about 0.3, in the
    mean by about 0.02; most images are easy.

    Args:
        space: The search space.
        images: Number of images.
    """

    def __init__(self, space: SearchSpace, images: int):
        rng = np.random.default_rng(0)
        self.hardness = rng.exponential(0.4, images)
        self.best = space.sample(rng)
        self.cached: dict[Subnet, np.ndarray] = {}

    def losses(self, subnet: Subnet) -> np.ndarray:
        """Loss of a subnet on each image."""
        if subnet not in self.cached:
            rng = np.random.default_rng(crc32(repr(subnet).encode()))
            own = 0.4 * rng.normal(size=len(self.hardness)) + 0.01 * rng.normal()
            losses = self.hardness * (1 + own) + 0.003 * _distance(subnet, self.best)
            self.cached[subnet] = losses.astype(np.float32)
        return self.cached[subnet]

    def outcome(self, score: str, task: Task) -> Outcome:
        """Outcome of a task; the mean loss stands for any score."""
        losses = self.losses(task.subnet)
        if task.images is None:
            return Outcome({score: float(losses.mean(dtype=float))})
        return Outcome(losses=losses[task.images])


def _distance(subnet: Subnet, other: Subnet) -> int:
    """Genes in which two subnets differ; depth and width count three times."""
    pairs = zip(
        subnet.num_heads + subnet.mlp_ratio, other.num_heads + other.mlp_ratio, strict=False
    )
    shape = (subnet.depth != other.depth) + (subnet.embed_dim != other.embed_dim)
    return 3 * shape + sum(a != b for a, b in pairs)


@dataclass(frozen=True)
class Plan:
    """What a simulated search is like; ``flops`` counts a subnet's FLOPs per image."""

    space: SearchSpace
    limits: Limits
    flops: Callable[[Subnet], float]
    images: int
    batch: int = 1
    evolution: Mapping = field(default_factory=dict)
    race: RaceRules | None = None
    finals: int = 0  # scored again after the last generation


@dataclass(frozen=True)
class Simulation:
    """A simulated search."""

    workers: int
    seconds: float
    work: float  # seconds, over all workers
    lost: dict[str, float]  # share of the workers' time in which they wait, by place
    images: float  # share of those that are evaluated
    driver: float  # real seconds of everything that is not a task
    best: Subnet

    @property
    def use(self) -> float:
        """Share of the workers' time spent on tasks."""
        return self.work / (self.workers * self.seconds)


def simulate(plan: Plan, workers: int, times: TaskTimes, landscape: Landscape) -> Simulation:
    """Run a search on simulated workers, with a real journal and a real history."""
    with TemporaryDirectory() as folder:
        return _simulate(plan, workers, times, landscape, Path(folder))


def _simulate(
    plan: Plan, workers: int, times: TaskTimes, landscape: Landscape, folder: Path
) -> Simulation:
    start = time.perf_counter()

    def seconds(task: Task) -> float:
        images = plan.images if task.images is None else len(task.images)
        return times.draw(plan.flops(task.subnet) * images, task.number)

    executor = SimulatedWorkers(workers, seconds, partial(landscape.outcome, 'cross_entropy'))
    scorer = CandidateScorer(
        Journalled(executor, Journal(folder / 'journal')),
        plan.images,
        plan.limits,
        History(folder / 'history'),
        race=plan.race,
        batch=plan.batch,
    )
    search = Evolution(plan.space, plan.limits.allow, **plan.evolution)
    lost = dict.fromkeys(PLACES, 0.0)
    keep = max(search.parents, plan.finals)
    for generation in scorer.run(search, 'search', 'float32', keep):
        *slices, end = executor.lost()
        if generation == 1:
            lost['first generation'] += sum(slices) + end
        else:
            lost['slices'] += sum(slices)
            lost['ends of generations'] += end
    finals = [Subnet.from_dict(line['subnet']) for line in scorer.best(plan.finals)]
    scorer.score_again(finals, 0)
    lost['finals'] = sum(executor.lost())
    total = workers * executor.now
    return Simulation(
        workers,
        executor.now,
        executor.busy,
        {place: idle / total for place, idle in lost.items()},
        scorer.evaluated / max(scorer.exhaustive, 1),
        time.perf_counter() - start - executor.own,
        search.best(1)[0],
    )
