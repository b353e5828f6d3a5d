"""Run a search from its first generation to its result; the caller evaluates."""

from collections.abc import Callable, Iterator, Sequence
from math import isfinite, isnan, nan

import numpy as np

from ..errors import UserError
from ..structures import Subnet
from .evolution import Evolution
from .limits import Limits
from .race import Race, RaceRules
from .records import History
from .task import Executor, Outcome, Task


class CandidateScorer:
    """Scores the subnets of a search, each once, and writes a line for each.

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
    ):
        self.executor, self.images, self.limits, self.history = executor, images, limits, history
        self.score, self.sign, self.race, self.seed = score, sign, race, seed
        self.on_line = on_line
        self.lines: list[dict] = []
        self.evaluated = self.exhaustive = self.tasks = 0
        self.known: dict[tuple[Subnet, str], dict] = {}
        self.controls: list[np.ndarray] = []  # losses of the best on all images, best first

    def run(self, search: Evolution, phase: str, precision: str, keep: int) -> Iterator[int]:
        """Run a search to its end; yield the number of scored generations after each.

        The ``keep`` best subnets are evaluated on all images, as surely as a race can tell.
        """
        while subnets := search.ask():
            where = dict(phase=phase, generation=search.generation, precision=precision)
            search.tell(self._generation(subnets, where, keep))
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
        self._score_whole(fresh, where)
        self._count_exhaustive(new, 'float32')

    def _generation(self, subnets: Sequence[Subnet], where: dict, keep: int) -> dict[Subnet, float]:
        """Score subnets; known ones are not evaluated again. Lower is better.

        A subnet that was dropped in another phase races again: here it may be the best.
        """
        precision = where['precision']
        known = {s: self.known[s, precision] for s in subnets if (s, precision) in self.known}
        settled = {
            subnet: line
            for subnet, line in known.items()
            if line['images'] == self.images or isnan(self._score_of(line))
        }
        for subnet, line in settled.items():
            self._write(subnet, where, {**line, **where})
        fresh = [subnet for subnet in subnets if subnet not in settled]
        if self.race is None:
            self._score_whole(fresh, where)
        else:
            self._race(fresh, where, keep)
        self._count_exhaustive([s for s in fresh if s not in known], precision)
        return {s: self.sign * self._score_of(self.known[s, precision]) for s in subnets}

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

    def _score_whole(self, subnets: Sequence[Subnet], where: dict) -> None:
        """Evaluate on all images; write lines in the order of the subnets."""
        outcomes, done = {}, 0
        for place, outcome in self._evaluate(subnets, where['precision'], None):
            outcomes[place] = self._checked(outcome)
            while done in outcomes:
                metrics = outcomes[done].metrics
                numbers = dict(images=self.images if metrics else 0, error=0.0, **metrics)
                self._write(subnets[done], where, numbers)
                done += 1

    def _checked(self, outcome: Outcome) -> Outcome:
        if outcome.metrics and self.score not in outcome.metrics:
            raise UserError(
                f'val_cfg.score is {self.score!r}, but val_evaluator gives '
                f'{sorted(outcome.metrics)}'
            )
        return outcome

    def _race(self, subnets: Sequence[Subnet], where: dict, keep: int) -> None:
        """Evaluate slice by slice; write a line as soon as its subnet is decided."""
        race = self._new_race(len(subnets), where, keep)
        while (piece := race.ask()) is not None:
            numbers, images = piece
            outcomes = self._evaluate([subnets[n] for n in numbers], where['precision'], images)
            decided = race.tell({numbers[place]: outcome.losses for place, outcome in outcomes})
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

    def _evaluate(
        self, subnets: Sequence[Subnet], precision: str, images: np.ndarray | None
    ) -> Iterator[tuple[int, Outcome]]:
        """Yield outcomes along with the places of their subnets, in any order."""
        first, self.tasks = self.tasks, self.tasks + len(subnets)
        for place, subnet in enumerate(subnets):
            self.executor.submit(Task(first + place, subnet, precision, images))
        for _ in subnets:
            task, outcome = self.executor.collect()
            if not outcome.is_empty:
                self.evaluated += self.images if images is None else len(images)
            yield task.number - first, outcome

    def _write(self, subnet: Subnet, where: dict, numbers: dict) -> None:
        line = {**where, **numbers, 'subnet': subnet.to_dict(), **self.limits.costs(subnet)}
        self.known[subnet, where['precision']] = line
        self.history.add(line)
        self.lines.append(line)
        self.on_line(line)
