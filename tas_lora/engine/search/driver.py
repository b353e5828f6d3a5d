"""A search from start to result: it asks for candidates, is told scores, and writes the files."""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite, nan
from pathlib import Path

from ...datasets.held_out_images import HeldOutImages
from ...errors import UserError
from ...search import (
    NSGA2,
    CandidateScorer,
    Evolution,
    Executor,
    History,
    Journal,
    Journalled,
    Limits,
    Measured,
    RaceRules,
)
from ...structures import SearchSpace, Subnet
from ..model_access import supernet_of
from .identity import begin_search, search_identity
from .progress import SearchProgress
from .result import (
    HISTORY,
    JOURNAL,
    as_record,
    front_records,
    set_aside,
    winner_gates,
    write_result,
)

PHASES = ('search', 'baseline')


@dataclass(frozen=True)
class SearchSettings:
    """The arguments of :class:`EvolutionarySearchLoop`, built and checked."""

    space: SearchSpace
    limits: Limits  # with the costs of a subnet, and the goals
    evolution: Evolution | NSGA2
    random: Evolution | None  # the baseline
    score: str
    rule: str
    race: RaceRules | None
    precision: str
    finalists: int
    measured: Measured | None
    measured_on: Callable[[], str]  # names the device
    log_interval: int
    resume: bool

    def finals_of(self, phase: str) -> int:
        """How many of the best are scored again, in float32 and on all metrics."""
        if self.precision != 'float32':
            return self.finalists if phase == 'search' else 1
        return 0 if self.race is None else 1


class SearchDriver:
    """One run of a search.

    Args:
        runner: Provides work directory, logger and the path of the weights.
        images: The held-out images.
        settings: The search settings.
        executor: Evaluates the candidates.
    """

    def __init__(self, runner, images: HeldOutImages, settings: SearchSettings, executor: Executor):
        self.runner, self.images, self.settings = runner, images, settings
        self.executor = executor
        self.folder, self.logger = Path(runner.work_dir), runner.logger
        self.scorer: CandidateScorer | None = None
        self.best: dict[str, float] = {}  # scores by phase

    @property
    def scored(self) -> int:
        """Number of candidates that have a line."""
        return 0 if self.scorer is None else len(self.scorer.lines)

    def run(self) -> dict:
        """Search, and return score and costs of the best subnet."""
        settings = self.settings
        weights, images = self.runner._load_from, self.images.fingerprint()
        measured_on = None if settings.measured is None else settings.measured_on()
        identity = search_identity(self.runner.cfg, weights, images, measured_on)
        if not settings.resume:
            set_aside(self.folder)
        self.identity = begin_search(self.folder, identity, settings.resume)
        history, journal = History(self.folder / HISTORY), Journal(self.folder / JOURNAL)
        if settings.measured is not None:
            settings.measured.resume()
        share = self._check_limits()
        if history.known:
            self.logger.info(f'Continuing after {len(history.known)} subnets that are scored.')
        if history.known and not journal.known:
            self.logger.warning(f'{journal.path} is missing: all of them are evaluated again.')
        self.progress = SearchProgress(
            self.runner,
            self._total(),
            len(self.images),
            share,
            settings.score,
            settings.log_interval,
        )
        self.scorer = CandidateScorer(
            Journalled(self.executor, journal, self.progress.evaluated),
            images=len(self.images),
            limits=settings.limits,
            history=history,
            score=settings.score,
            sign=1 if settings.rule == 'less' else -1,
            race=settings.race,
            seed=settings.evolution.seed,
            on_line=self._note,
        )
        with self.progress:
            self._search()
        return self._finish()

    def _check_limits(self) -> float:
        """Share of subnets within the limits; an error if there are none, a warning if few."""
        limits = self.settings.limits
        share, text = limits.survey(self.settings.space)
        is_measured = any(name in limits.measured for name in limits.ranges)
        # Evolution tries harder than the survey, but measuring takes seconds per subnet.
        if not share and (is_measured or not self.settings.evolution.ask()):
            raise UserError(f'no subnet was found: {text}; change val_cfg.constraints')
        if share < Limits.FEW:
            self.logger.warning(f'The limits are narrow: {text}')
        return share

    def _total(self) -> int:
        """Expected number of lines."""
        settings = self.settings
        phases = PHASES if settings.random else PHASES[:1]
        each = settings.evolution.population * settings.evolution.generations
        return each * len(phases) + sum(map(settings.finals_of, phases))

    def _search(self) -> None:
        settings, evolution = self.settings, self.settings.evolution
        keep = max(evolution.parents, settings.finals_of('search'))
        self._run_phase('search', evolution, keep)
        if evolution.generation < evolution.generations:
            self.logger.info('No further subnet within the limits was found.')
        if settings.random:
            self._run_phase('baseline', settings.random, 1)
        self.scorer.history.finish(with_random=settings.random is not None)

    def _run_phase(self, phase: str, search: Evolution, keep: int) -> None:
        name = 'Generation' if phase == 'search' else 'Random search, generation'
        for generation in self.scorer.run(search, phase, self.settings.precision, keep):
            best = self.scorer.best(1, phase=phase)
            if best:
                self.logger.info(
                    f'{name} {generation}/{search.generations}  '
                    f'best {self.settings.score}: {best[0][self.settings.score]:.4f}  '
                    f'params: {best[0]["params"]:,}'
                )
            if search.surrogate is not None:
                use = 'used' if search.surrogate.is_trusted else 'ignored'
                self.logger.info(
                    f'Surrogate: rank correlation {search.surrogate.correlation:.2f} with the '
                    f'scores of this generation, so it is {use}'
                )
        finals = self.scorer.best(self.settings.finals_of(phase), phase=phase)
        subnets = [Subnet.from_dict(line['subnet']) for line in finals]
        if subnets:  # only these can win
            self.logger.info(f'The best {len(subnets)} are scored again in float32.')
            self.scorer.score_again(subnets, generation=PHASES.index(phase))

    def _winner(self, phase: str) -> dict | None:
        """The best of a phase, among those scored again if there are any."""
        again = dict(phase='finals', generation=PHASES.index(phase))
        where = again if self.settings.finals_of(phase) else dict(phase=phase)
        return next(iter(self.scorer.best(1, **where)), None)

    def _finish(self) -> dict:
        settings, scorer = self.settings, self.scorer
        best = self._winner('search')
        if best is None:
            raise UserError(
                f'no subnet has a finite {settings.score}, or none fits in memory; see the log'
            )
        baseline = self._winner('baseline') if settings.random else None
        winner = Subnet.from_dict(best['subnet'])
        cost = self.progress.cost() | self.executor.usage()
        write_result(
            self.folder,
            self._record(best, baseline),
            front_records(scorer, settings.limits.goals, 'search', settings.precision),
            winner_gates(supernet_of(self.runner), winner),
            cost,
        )
        self._log_result(best, baseline, winner)
        numbers = as_record(best)
        return {name: value for name, value in numbers.items() if isinstance(value, (int, float))}

    def _record(self, best: dict, baseline: dict | None) -> dict:
        settings, scorer = self.settings, self.scorer
        return dict(
            **as_record(best),
            score=settings.score,
            rule=settings.rule,
            parents=0 if settings.limits.goals else settings.evolution.parents,
            goals=list(settings.limits.goals),
            candidates=len({str(line['subnet']) for line in scorer.lines}),
            images_evaluated=scorer.evaluated,
            images_exhaustive=scorer.exhaustive,
            baseline=None if baseline is None else as_record(baseline),
            search=self.identity,
        )

    def _log_result(self, best: dict, baseline: dict | None, winner: Subnet) -> None:
        settings, scorer = self.settings, self.scorer
        if settings.race is not None:
            share = scorer.evaluated / scorer.exhaustive
            self.logger.info(
                f'The race took {scorer.evaluated:,} images, {share:.1%} of the '
                f'{scorer.exhaustive:,} that evaluating all takes.'
            )
        if baseline is not None:
            name = settings.score
            gain = scorer.sign * (baseline[name] - best[name])
            said = 'better than' if gain > 0 else 'worse than' if gain < 0 else 'as good as'
            self.logger.info(
                f'{name} {best[name]:.4f} is {said} the {baseline[name]:.4f} of random search.'
            )
        self.logger.info(
            f'Best after {len(scorer.lines)} evaluations, written to '
            f'{self.folder / "best_subnet.json"}: {winner}'
        )

    def _note(self, line: dict) -> None:
        """Report a line and the best score of its phase."""
        phase, score = line['phase'], self.settings.score
        value, best = line.get(score, nan), self.best.get(phase)
        if line['images'] == len(self.images) and isfinite(value):
            is_better = best is None or self.scorer.sign * (value - best) < 0
            self.best[phase] = value if is_better else best
        self.progress.note(line, self.best.get(phase, nan))
