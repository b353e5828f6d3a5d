"""Run a search from its first generation to its result; the caller evaluates."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite, isnan, nan

import numpy as np

from ..errors import UserError
from ..structures import Subnet
from .evolution import Evolution
from .limits import Limits
from .race import Race, RaceRules
from .records import History
from .task import Executor, Outcome, Task


@dataclass
class _Generation:
    """A generation that is being scored."""

    subnets: Sequence[Subnet]
    where: dict  # phase, generation and precision, as in its lines
    known: dict[Subnet, dict]  # lines of those scored before
    fresh: list[Subnet]  # the others, and those that race again
    tasks: range = range(0)  # of the fresh ones, without a race


def check_score(metrics: dict[str, float], score: str) -> None:
    """Refuse metrics of a subnet without the score; if there are none, its memory ran out."""
    if metrics and score not in metrics:
        raise UserError(
            f'val_cfg.score is {score!r}, but the numbers that val_evaluator gives are '
            f'{sorted(metrics)}'
        )


class CandidateScorer:
    """Scores the subnets of a search, each once, and writes a line for each.

    A slice of a race is split into tasks of about half as many images as the first slice has, so
    that few candidates keep many workers busy. A task has whole batches, so that the losses do not
    depend on the split.

    Args:
        executor: Evaluates tasks, in any order.
        images: Number of held-out images.
        limits: Computes the costs of a subnet.
        history: Receives the lines.
        score: Metric by which subnets are ranked.
        sign: 1 if a lower score is better, -1 if a higher one is.
        race: Rules of the race; None evaluates every subnet on all images.
        seed: Seed of the race's draws.
        on_line: Called with each line.
        batch: Images in a batch of an evaluation.

    Attributes:
        lines: All lines so far; ``images`` is how many images the score is based on.
        evaluated: Images evaluated so far, over all subnets; failed tasks count as 0.
        exhaustive: Images that would have been evaluated without a race.
    """

    def __init__(
        self,
        executor: Executor,
        images: int,
        limits: Limits,
        history: History,
        score: str = 'cross_entropy',
        sign: int = 1,
        race: RaceRules | None = None,
        seed: int = 0,
        on_line: Callable[[dict], None] = lambda line: None,
        batch: int = 1,
    ):
        self.executor, self.images, self.limits, self.history = executor, images, limits, history
        self.score, self.sign, self.race, self.seed = score, sign, race, seed
        self.on_line = on_line
        first = images if race is None else race.first
        self.part = max(round(first / 2 / batch), 1) * batch  # images of a race's task
        self.lines: list[dict] = []
        self.evaluated = self.exhaustive = self.tasks = 0
        self.early: dict[int, Outcome] = {}  # by task, of generations whose turn comes later
        self.known: dict[tuple[Subnet, str], dict] = {}
        self.controls: list[np.ndarray] = []  # losses of the best on all images, best first

    def run(self, search: Evolution, phase: str, precision: str, keep: int) -> Iterator[int]:
        """Run a search to its end; yield the number of scored generations after each.

        The ``keep`` best subnets are evaluated on all images, as surely as a race can tell.
        """
        ahead = deque[_Generation]()
        where = dict(phase=phase, precision=precision)
        while True:
            while len(ahead) <= search.overlap:
                if not (subnets := search.ask([generation.subnets for generation in ahead])):
                    break
                number = search.generation + len(ahead)
                ahead.append(self._begin(subnets, where | dict(generation=number)))
            if not ahead:
                return
            search.tell(self._finish(ahead.popleft(), keep))
            yield search.generation

    def score_again(self, subnets: Sequence[Subnet], generation: int) -> None:
        """Score subnets in float32 on all images with all metrics, in the phase 'finals'."""
        where = dict(phase='finals', generation=generation, precision='float32')
        finals = [line for line in self.lines if line['phase'] == 'finals']
        known = {Subnet.from_dict(line['subnet']): line for line in finals}
        for subnet in subnets:
            if subnet in known:
                self._write(subnet, where, {**known[subnet], **where})
        fresh = [subnet for subnet in subnets if subnet not in known]
        new = [subnet for subnet in fresh if (subnet, 'float32') not in self.known]
        tasks = self._submit([(subnet, None) for subnet in fresh], 'float32')
        self._write_whole(fresh, tasks, where)
        self._count_exhaustive(new, 'float32')

    def _begin(self, subnets: Sequence[Subnet], where: dict) -> _Generation:
        """Submit the subnets that must be evaluated, unless they race.

        A subnet that was dropped in another phase races again: here it may be the best.
        """
        precision = where['precision']
        known = {s: self.known[s, precision] for s in subnets if (s, precision) in self.known}
        fresh = [s for s in subnets if s not in known or not self._is_settled(known[s])]
        generation = _Generation(subnets, where, known, fresh)
        if self.race is None:
            generation.tasks = self._submit([(subnet, None) for subnet in fresh], precision)
        return generation

    def _is_settled(self, line: dict) -> bool:
        return line['images'] == self.images or isnan(self._score_of(line))

    def _finish(self, generation: _Generation, keep: int) -> dict[Subnet, float]:
        """Write the lines of a generation and return its scores; lower is better."""
        where, known, fresh = generation.where, generation.known, generation.fresh
        for subnet, line in known.items():
            if self._is_settled(line):
                self._write(subnet, where, {**line, **where})
        if self.race is None:
            self._write_whole(fresh, generation.tasks, where)
        else:
            self._race(fresh, where, keep)
        precision = where['precision']
        self._count_exhaustive([s for s in fresh if s not in known], precision)
        return {s: self.sign * self._score_of(self.known[s, precision]) for s in generation.subnets}

    def _count_exhaustive(self, new: Sequence[Subnet], precision: str) -> None:
        """Add the images that new subnets would cost without a race; a failed one costs none."""
        self.exhaustive += sum(self.images for s in new if self.known[s, precision]['images'])

    def best(self, count: int, **where) -> list[dict]:
        """Return the best lines scored on all images, such as those of a ``phase``."""
        lines = [
            line
            for line in self.lines
            if line['images'] == self.images
            and isfinite(self._score_of(line))
            and all(line[key] == value for key, value in where.items())
        ]
        return sorted(lines, key=lambda line: self.sign * line[self.score])[:count]

    def _score_of(self, line: dict) -> float:
        score = line.get(self.score, nan)
        return score if isfinite(score) else nan  # infinity could win

    def _write_whole(self, subnets: Sequence[Subnet], tasks: range, where: dict) -> None:
        """Write lines of subnets that are evaluated on all images, in their order."""
        outcomes, done = {}, 0
        for number, outcome in self._outcomes(tasks):
            check_score(outcome.metrics, self.score)
            outcomes[number] = outcome
            while done < len(tasks) and tasks[done] in outcomes:
                metrics = outcomes[tasks[done]].metrics
                numbers = dict(images=self.images if metrics else 0, error=0.0, **metrics)
                self._write(subnets[done], where, numbers)
                done += 1

    def _race(self, subnets: Sequence[Subnet], where: dict, keep: int) -> None:
        """Evaluate slice by slice; write a line as soon as its subnet is decided."""
        race = self._new_race(len(subnets), where, keep)
        while (piece := race.ask()) is not None:
            numbers, images = piece
            losses = self._losses([subnets[n] for n in numbers], where['precision'], images)
            decided = race.tell(dict(zip(numbers, losses, strict=True)))
            for number in decided:
                mean, error = float(race.means[number]), float(race.errors[number])
                found = dict(images=int(race.seen[number]), error=error)
                score = {} if isnan(mean) else {self.score: mean}
                self._write(subnets[number], where, found | score)
        whole = map(race.whole, range(len(subnets)))
        self.controls += [losses for losses in whole if losses is not None]
        self.controls.sort(key=lambda losses: losses.mean(dtype=np.float64))
        del self.controls[self.race.controls :]

    def _new_race(self, candidates: int, where: dict, keep: int) -> Race:
        phase, precision = where['phase'], where['precision']
        best = self.best(keep, phase=phase, precision=precision)
        bar = [line[self.score] for line in best]
        known = np.array(self.controls).reshape(-1, self.images)
        rng = np.random.default_rng((self.seed, where['generation'], *phase.encode()))
        return Race(candidates, self.images, keep, known, bar, self.race, rng)

    def _losses(
        self, subnets: Sequence[Subnet], precision: str, images: np.ndarray
    ) -> list[np.ndarray | None]:
        """Losses of each subnet on some images, None for one that failed on any."""
        parts = [images[start : start + self.part] for start in range(0, len(images), self.part)]
        # Parts of a subnet in a row: an executor that takes several merges its experts once.
        tasks = self._submit([(s, part) for s in subnets for part in parts], precision)
        found = dict(self._outcomes(tasks))
        whole = []
        for start in range(0, len(tasks), len(parts)):
            losses = [found[number].losses for number in tasks[start : start + len(parts)]]
            whole.append(None if any(some is None for some in losses) else np.concatenate(losses))
        return whole

    def _submit(self, pairs: Sequence[tuple[Subnet, np.ndarray | None]], precision: str) -> range:
        """Submit evaluations of subnets on images; return their numbers."""
        numbers = range(self.tasks, self.tasks + len(pairs))
        self.tasks = numbers.stop
        for number, (subnet, images) in zip(numbers, pairs, strict=True):
            self.executor.submit(Task(number, subnet, precision, images))
        return numbers

    def _outcomes(self, numbers: range) -> Iterator[tuple[int, Outcome]]:
        """Yield numbers and outcomes of tasks as they come; keep those of other tasks."""
        before = [number for number in numbers if number in self.early]
        for number in before:
            yield number, self.early.pop(number)
        left = len(numbers) - len(before)
        while left:
            task, outcome = self.executor.collect()
            if not outcome.is_empty:
                self.evaluated += self.images if task.images is None else len(task.images)
            if task.number in numbers:
                left -= 1
                yield task.number, outcome
            else:
                self.early[task.number] = outcome

    def _write(self, subnet: Subnet, where: dict, numbers: dict) -> None:
        line = {**where, **numbers, 'subnet': subnet.to_dict(), **self.limits.costs(subnet)}
        self.known[subnet, where['precision']] = line
        self.history.add(line)
        self.lines.append(line)
        self.on_line(line)
