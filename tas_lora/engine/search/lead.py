"""The rank that leads a search: it asks, is told, and writes what was found."""

from collections.abc import Iterator
from math import isfinite, nan
from pathlib import Path
from typing import TYPE_CHECKING

from mmengine.dist import get_world_size

from ...errors import UserError
from ...search import (
    Evolution,
    History,
    Journal,
    Limits,
    Outcome,
    Study,
    Task,
    open_history,
    open_measured,
)
from ...structures import Subnet
from .crew import Crew
from .identity import begin_search, identity_of
from .progress import SearchProgress
from .result import front_of, gates_of, record_of, set_aside, write_result

if TYPE_CHECKING:
    from .evolution_search_loop import EvolutionarySearchLoop

HISTORY, JOURNAL = 'search_history.jsonl', 'search_journal.bin'
PHASES = ('search', 'baseline')


class Lead:
    """One run of a search, as the loop's arguments say.

    Args:
        loop: The loop.
    """

    def __init__(self, loop: 'EvolutionarySearchLoop'):
        self.loop, self.folder = loop, Path(loop.runner.work_dir)
        self.logger = loop.runner.logger
        self.study: Study | None = None
        self.best: dict[str, float] = {}  # scores by phase

    @property
    def scored(self) -> int:
        """Candidates that have a line."""
        return 0 if self.study is None else len(self.study.lines)

    def run(self, crew: Crew) -> dict:
        """Search with a crew; returns score and costs of the best subnet."""
        loop = self.loop
        weights, images = loop.runner._load_from, loop.images.fingerprint()
        identity = identity_of(loop.runner.cfg, weights, images)
        if not loop.resume:
            set_aside(self.folder)
        self.identity = begin_search(self.folder, identity, loop.resume)
        lines = open_history(self.folder / HISTORY, loop.resume)
        journal = Journal(self.folder / JOURNAL, loop.resume)
        if loop.measured is not None:
            loop.measured.recall(open_measured(loop.measured.path, loop.resume))
        share = self._check_limits()
        if lines:
            self.logger.info(f'Going on behind {len(lines)} subnets that are scored.')
        if lines and not journal.known:
            self.logger.warning(f'{journal.path} is missing: all of them are evaluated again.')
        self.progress = self._new_progress(share)
        self.study = Study(
            lambda tasks: self._perform(tasks, journal, crew),
            images=len(loop.images),
            limits=loop.limits,
            history=History(self.folder / HISTORY, lines),
            score=loop.score,
            sign=1 if loop.rule == 'less' else -1,
            race=loop.race,
            seed=loop.evolution.seed,
            on_line=self._note,
        )
        with self.progress:
            self._search()
        crew.farewell = self._finish()
        return crew.farewell

    def _check_limits(self) -> float:
        """Refuse limits that leave nothing, warn of those that leave little; gives their share."""
        limits = self.loop.limits
        share, text = limits.survey(self.loop.space)
        is_measured = any(name in limits.measured for name in limits.ranges)
        # Evolution tries harder than the survey, but not with measurements of seconds each.
        if not share and (is_measured or not self.loop.evolution.ask()):
            raise UserError(f'no subnet was found: {text}; change val_cfg.constraints')
        if share < Limits.FEW:
            self.logger.warning(f'The limits are narrow: {text}')
        return share

    def _new_progress(self, share: float) -> SearchProgress:
        loop, search = self.loop, self.loop.evolution
        total = search.population * search.generations * (2 if loop.baseline else 1)
        total += self._finals_of('search') + (self._finals_of('baseline') if loop.baseline else 0)
        return SearchProgress(
            loop.runner, total, len(loop.images), share, loop.score, loop.log_interval
        )

    def _perform(
        self, tasks: list[Task], journal: Journal, crew: Crew
    ) -> Iterator[tuple[Task, Outcome]]:
        """What the journal knows, then what has to be evaluated."""
        unknown = []
        for task in tasks:
            if (outcome := journal.recall(task)) is None:
                unknown.append(task)
            else:
                yield task, outcome
        yield from self.progress.timed(crew.perform(unknown, keep=journal.append))

    def _search(self) -> None:
        loop = self.loop
        keep = max(loop.evolution.parents, self._finals_of('search'))
        self._run_phase('search', loop.evolution, keep)
        if loop.evolution.generation < loop.evolution.generations:
            self.logger.info('No further subnet within the limits was found.')
        if loop.baseline:
            self._run_phase('baseline', loop.random_search(), 1)

    def _run_phase(self, phase: str, search: Evolution, keep: int) -> None:
        name = 'Generation' if phase == 'search' else 'Random search, generation'
        for generation in self.study.run(search, phase, self.loop.precision, keep):
            best = self.study.best(1, phase=phase)
            if best:
                self.logger.info(
                    f'{name} {generation}/{search.generations}  '
                    f'best {self.loop.score}: {best[0][self.loop.score]:.4f}  '
                    f'params: {best[0]["params"]:,}'
                )
            if search.surrogate is not None:
                use = 'used' if search.surrogate.is_trusted else 'ignored'
                self.logger.info(
                    f'Surrogate: rank correlation {search.surrogate.correlation:.2f} with the '
                    f'scores of this generation, hence {use}'
                )
        self._score_finals(phase)

    def _finals_of(self, phase: str) -> int:
        """How many of the best are scored again: in float32, and on all metrics."""
        if self.loop.precision != 'float32':
            return self.loop.finalists if phase == 'search' else 1
        return 0 if self.loop.race is None else 1

    def _score_finals(self, phase: str) -> None:
        """Score the best of a phase again; the others are out."""
        best = self.study.best(self._finals_of(phase), phase=phase)
        subnets = [Subnet.from_dict(line['subnet']) for line in best]
        if subnets:
            self.logger.info(f'The best {len(subnets)} are scored again in float32.')
            self.study.score_again(subnets, generation=PHASES.index(phase))

    def _winner(self, phase: str) -> dict | None:
        """The best of a phase: of those scored again, if any were."""
        again = dict(phase='finals', generation=PHASES.index(phase))
        where = again if self._finals_of(phase) else dict(phase=phase)
        return next(iter(self.study.best(1, **where)), None)

    def _finish(self) -> dict:
        loop, study = self.loop, self.study
        best = self._winner('search')
        if best is None:
            raise UserError(
                f'no subnet has a finite {loop.score}, or none fits in memory; see the log'
            )
        baseline = self._winner('baseline') if loop.baseline else None
        winner = Subnet.from_dict(best['subnet'])
        cost = self.progress.cost() | dict(processes=get_world_size())
        write_result(
            self.folder,
            self._record(best, baseline),
            front_of(study, loop.goals, 'search', loop.precision),
            gates_of(loop.model, winner),
            cost,
        )
        self._log_result(best, baseline, winner)
        numbers = record_of(best)
        return {name: value for name, value in numbers.items() if isinstance(value, (int, float))}

    def _record(self, best: dict, baseline: dict | None) -> dict:
        loop, study = self.loop, self.study
        return dict(
            **record_of(best),
            score=loop.score,
            rule=loop.rule,
            parents=0 if loop.goals else loop.evolution.parents,
            goals=list(loop.goals),
            candidates=len({str(line['subnet']) for line in study.lines}),
            images_evaluated=study.evaluated,
            images_exhaustive=study.exhaustive,
            baseline=None if baseline is None else record_of(baseline),
            search=self.identity,
        )

    def _log_result(self, best: dict, baseline: dict | None, winner: Subnet) -> None:
        loop, study = self.loop, self.study
        if loop.race is not None:
            share = study.evaluated / study.exhaustive
            self.logger.info(
                f'The race took {study.evaluated:,} images, {share:.1%} of the '
                f'{study.exhaustive:,} of evaluating all.'
            )
        if baseline is not None:
            gain = study.sign * (baseline[loop.score] - best[loop.score])
            said = 'better than' if gain > 0 else 'worse than' if gain < 0 else 'as good as'
            self.logger.info(
                f'{loop.score} {best[loop.score]:.4f} is {said} the {baseline[loop.score]:.4f} '
                'of random search.'
            )
        self.logger.info(
            f'Best after {len(study.lines)} evaluations, written to '
            f'{self.folder / "best_subnet.json"}: {winner}'
        )

    def _note(self, line: dict) -> None:
        """Show a line, and the best score of its phase."""
        phase, score = line['phase'], self.loop.score
        value, best = line.get(score, nan), self.best.get(phase)
        if line['images'] == len(self.loop.images) and isfinite(value):
            is_better = best is None or self.study.sign * (value - best) < 0
            self.best[phase] = value if is_better else best
        self.progress.note(line, self.best.get(phase, nan))
