"""Evolutionary search as a validation loop."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from mmengine.runner import ValLoop

from ...checks import boolean, bounded, of_part, one_of, positive, some_of, within
from ...costs.deployed import Deployed
from ...datasets.held_out_images import HeldOutImages
from ...datasets.replay import readable
from ...errors import UserError
from ...evaluation import CrossEntropy
from ...metric_rules import settled_rule
from ...registry import LOOPS
from ...search import (
    NSGA2,
    Evolution,
    Executor,
    InProcess,
    Limits,
    Measured,
    RaceRules,
    Surrogate,
    count_flops,
    count_params,
    read_measured,
)
from ...search.limits import UNITS
from ...structures import SearchSpace
from ..model_access import supernet_of
from .candidate_evaluator import CandidateEvaluator
from .driver import SearchDriver, SearchSettings
from .identity import device_name, refuse_test_set
from .progress import stopped_by_signals
from .ray_executor import RAY_OPTIONS, RayExecutor
from .result import MEASURED

COUNTERS = dict(params=count_params, flops=count_flops)
_OF_NSGA2 = ('population', 'generations', 'gene_prob', 'shape_prob', 'seed')


@LOOPS.register_module()
class EvolutionarySearchLoop(ValLoop):
    """Finds the subnet with the best score within limits (TAS-LoRA, Algorithm 2).

    It is the ``val_cfg`` of a search config; ``runner.val()`` starts it. The validation data must
    be images that no training stage has seen, and not the test set. It writes to the work
    directory: ``best_subnet.json``, ``front.json``, ``search_history.jsonl`` with a line per
    subnet, ``search_journal.jsonl`` from which a killed search resumes, and ``search.json``, which
    identifies the search. The result does not depend on the number of workers. A subnet whose
    evaluation runs out of memory gets no score and cannot win; the search continues.

    Args:
        dataloader: As in ``ValLoop``: the held-out images.
        evaluator: As in ``ValLoop``; must yield ``score``.
        space: The search space, or its dict.
        constraints: Limits, ``{'params': (low, high), ...}``, inclusive; None leaves a side open.
            Costs are ``params`` and ``flops``, and with ``measure`` ``latency`` in ms and
            ``memory`` in MiB.
        goals: Costs to minimise along with the score. With goals, the search is NSGA-II and its
            result the front of trade-offs; the race is then off.
        score: Name of the metric that ranks subnets.
        rule: 'less' if a lower score is better, 'greater' if a higher one is. None infers it from
            the name, as MMEngine does for ``save_best``.
        race: Arguments of :class:`~tas_lora.search.RaceRules`, which drop subnets early if their
            ``cross_entropy`` is surely not among the best. None evaluates all on all images.
        surrogate: Let a regressor preselect children while it ranks them well.
        measure: How to measure latency and peak memory of an exported subnet: arguments of
            :class:`~tas_lora.costs.deployed.Deployed`. None measures neither.
        measured: ``measured.jsonl`` of another search, whose measurements are reused.
        baseline: Also run a random search of as many subnets afterwards, and report both.
        precision: Precision of the forward pass, 'float32' or 'bfloat16'.
        finalists: After a search in bfloat16, this many of its best are scored again in float32;
            the best of those is the result.
        evolution: Arguments of :class:`~tas_lora.search.Evolution`: ``population``,
            ``generations``, ``parents``, ``mutations``, ``crossovers``, ``gene_prob``,
            ``shape_prob``, ``seed``, ``overlap``. NSGA-II uses those it has. An ``overlap`` gives
            work to more workers than the population has subnets; it needs ``race=None``.
        memory_share: Share of the free memory that decoded images may take. If they need more,
            they are decoded again for every subnet.
        ray: Workers that evaluate the candidates: arguments of
            :class:`~tas_lora.engine.search.ray_executor.RayExecutor`. None: this process.
        log_interval: Subnets between two log lines.
        resume: Continue the search in the work directory without evaluating anything twice. It
            must be the same search.
        search_on_test_set: Accept a dataset that is marked as a test set or is the config's test
            set.
        search_on_training_images: Accept a checkpoint that was trained on images of the search.
        **kwargs: As in ``ValLoop``.

    Raises:
        UserError: If the space does not fit the supernet, or no subnet is found within the limits.
    """

    def __init__(
        self,
        runner,
        dataloader,
        evaluator,
        space: dict,
        constraints: dict | None = None,
        goals: Sequence[str] = (),
        score: str = 'cross_entropy',
        rule: str | None = None,
        race: dict | None = None,
        surrogate: bool = False,
        measure: dict | None = None,
        measured: str | None = None,
        baseline: bool = False,
        precision: str = 'float32',
        finalists: int = 10,
        evolution: dict | None = None,
        memory_share: float = 0.5,
        ray: dict | None = None,
        log_interval: int = 10,
        resume: bool = False,
        search_on_test_set: bool = False,
        search_on_training_images: bool = False,
        **kwargs,
    ):
        if kwargs.get('fp16'):
            raise UserError("must be False: use precision='bfloat16' for a search", 'fp16')
        boolean(search_on_training_images, 'search_on_training_images')  # the runner reads it
        if not boolean(search_on_test_set, 'search_on_test_set'):
            with of_part('val_dataloader'):
                refuse_test_set(runner.cfg)
        super().__init__(runner, readable(dataloader), evaluator, **kwargs)
        memory_share = bounded(memory_share, 'memory_share')
        with of_part('val_dataloader'):
            self.images = HeldOutImages(self.dataloader, memory_share)
        self.model = supernet_of(runner)
        space = SearchSpace.coerce(space)
        self.model.check_space(space, 'the space')
        rule = settled_rule(score, rule, warn=runner.logger.warning)
        if rule != 'less' and runner.cfg.get('val_cfg'):
            # What a resumed search and a report must know.
            runner.cfg.val_cfg.rule = rule
        one_of(precision, 'precision', ('float32', 'bfloat16'))
        self.evaluate = CandidateEvaluator(runner, self.images, self.evaluator)
        self.executor = self._executor(ray)
        deployed = self._measured(measure, measured)
        limits = self._limits(constraints, goals, deployed)
        search = _algorithm(evolution, space, limits, boolean(surrogate, 'surrogate'))
        race = None if limits.goals else self._race_rules(race, score, rule)
        _check_overlap(search.overlap, race, deployed)
        self.settings = SearchSettings(
            space=space,
            limits=limits,
            evolution=search,
            random=_random_search(search) if boolean(baseline, 'baseline') else None,
            score=score,
            rule=rule,
            race=race,
            precision=precision,
            finalists=positive(finalists, 'finalists', int),
            measured=deployed,
            measured_on=device_name if ray is None else self.executor.device,
            log_interval=positive(log_interval, 'log_interval', int),
            resume=boolean(resume, 'resume'),
        )

    def run(self) -> dict:
        """Search, and return score and costs of the best subnet."""
        self.runner.call_hook('before_val')
        self.runner.call_hook('before_val_epoch')
        with ExitStack() as stack:
            if isinstance(self.executor, RayExecutor):
                stack.enter_context(self.executor)
            driver = SearchDriver(self.runner, self.images, self.settings, self.executor)
            stack.enter_context(stopped_by_signals(self.runner, lambda: driver.scored))
            metrics = driver.run()
        self.runner.call_hook('after_val_epoch', metrics=metrics)
        self.runner.call_hook('after_val')
        return metrics

    def _executor(self, ray: dict | None) -> Executor:
        if ray is None:
            return InProcess(self.evaluate)
        if not isinstance(ray, Mapping) or not set(ray) <= set(RAY_OPTIONS):
            raise UserError(f'must be a dict of {RAY_OPTIONS}, got {ray!r}', 'ray')
        with within('ray'):
            return RayExecutor(self.runner, self.images, **ray)

    def _measured(self, measure: dict | None, others: str | None) -> Measured | None:
        if measure is None:
            return None
        path = Path(self.runner.work_dir) / MEASURED
        known = None if others is None else read_measured(others)
        if isinstance(self.executor, RayExecutor):  # its workers check the options
            return Measured(path, self.executor.measure, known)
        with within('measure'):
            return Measured(path, Deployed.of_model(self.model, measure), known)

    def _limits(
        self, constraints: dict | None, goals: Sequence[str], deployed: Measured | None
    ) -> Limits:
        spec, names = self.model.image_spec, () if deployed is None else tuple(UNITS)
        measured = {name: partial(deployed.cost, name) for name in names}
        if goals not in ((), []):
            goals = some_of(goals, 'goals', (*COUNTERS, *names))
        counters = {name: partial(count, **spec) for name, count in COUNTERS.items()}
        return Limits(constraints, counters, measured, tuple(goals))

    def _race_rules(self, race: dict | None, score: str, rule: str) -> RaceRules | None:
        if race is None:
            return None
        if not isinstance(race, Mapping):
            raise UserError(f'must be a dict or None, got {race!r}', 'race')
        measures = any(isinstance(metric, CrossEntropy) for metric in self.evaluator.metrics)
        if (score, rule) != ('cross_entropy', 'less') or not measures:
            raise UserError(
                "compares losses image by image: it needs score='cross_entropy', rule='less' and "
                "dict(type='tas_lora.CrossEntropy') in val_evaluator; or set race=None",
                'race',
            )
        with within('race'):
            return RaceRules(**race)


def _algorithm(
    arguments: dict | None, space: SearchSpace, limits: Limits, surrogate: bool
) -> Evolution | NSGA2:
    """Evolution for the score alone, or NSGA-II if there are goals."""
    if not isinstance(arguments, (Mapping, type(None))):
        raise UserError(f'must be a dict, got {arguments!r}', 'evolution')
    arguments = dict(arguments or {})
    with within('evolution'):  # what it refuses is also a mistake for NSGA-II
        search = Evolution(space, limits.allow, **arguments)
    if not limits.goals:
        search.surrogate = Surrogate(space, search.seed) if surrogate else None
        return search
    if search.overlap:
        raise UserError(
            f'is {search.overlap}: with goals, each generation needs the one before; set it to 0',
            'evolution.overlap',
        )
    if surrogate:
        raise UserError('preselects by score alone; leave out goals or it', 'surrogate')
    costs = {name: partial(limits.cost, name) for name in limits.goals}
    own = {name: value for name, value in arguments.items() if name in _OF_NSGA2}
    return NSGA2(space, limits.allow, costs, **own)


def _check_overlap(overlap: int, race: RaceRules | None, deployed: Measured | None) -> None:
    """Refuse generations that overlap where each must wait for the one before."""
    if overlap and (race is not None or deployed is not None):
        why = 'latency is measured while nothing else runs; set it to 0, or measure=None'
        if race is not None:
            why = (
                'a generation races against the one before; set it to 0, or race=None '
                '(--exhaustive)'
            )
        raise UserError(f'is {overlap}, but {why}', 'evolution.overlap')


def _random_search(search: Evolution | NSGA2) -> Evolution:
    """A search of as many subnets, all sampled at random."""
    return Evolution(
        search.space,
        search.is_feasible,
        population=search.population,
        generations=search.generations,
        mutations=0,
        crossovers=0,
        seed=search.seed + 1,  # with the same seed, the first generations would be equal
        overlap=search.overlap,
    )
