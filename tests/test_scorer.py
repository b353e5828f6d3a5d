"""A search from its first generation to its result, with candidates scored by plain arithmetic."""

import tempfile
from collections import Counter
from math import nan
from pathlib import Path
from unittest import mock
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import SPACE, repeatable

from tas_lora import SearchSpace, Subnet, count_params
from tas_lora.search import (
    CandidateScorer,
    Evolution,
    History,
    InProcess,
    Journal,
    Journalled,
    Limits,
    Outcome,
    RaceRules,
    Task,
    read_history,
)

IMAGES = 1500
LARGE = SearchSpace((16, 24, 32), (4, 5, 6), (1, 2, 3), (1.0, 2.0, 3.0))
OPTIMUM = Subnet(24, [3, 1, 2, 3, 1], [2.0, 3.0, 1.0, 1.0, 2.0])
SIZES = dict(population=12, generations=4, parents=4, mutations=5, crossovers=5)
RULES = dict(first=150, controls=10, strata=7)
LIMITS = Limits(None, dict(params=count_params))
HARDNESS = np.random.default_rng(0).exponential(0.4, IMAGES)


def distance(subnet: Subnet) -> int:
    """Genes in which a subnet differs from the optimum."""
    genes = zip(
        subnet.num_heads + subnet.mlp_ratio, OPTIMUM.num_heads + OPTIMUM.mlp_ratio, strict=False
    )
    shape = 3 * (subnet.depth != OPTIMUM.depth) + (subnet.embed_dim != OPTIMUM.embed_dim)
    return shape + sum(a != b for a, b in genes)


def losses_of(subnet: Subnet) -> np.ndarray:
    """By image; on a single one subnets differ by about .3, in the mean by .02."""
    rng = np.random.default_rng(crc32(repr(subnet).encode()))
    own = HARDNESS * (0.4 * rng.normal(size=IMAGES) + 0.02 * rng.normal())
    return (HARDNESS + 0.005 * distance(subnet) + own).astype(np.float32)


def mean_of(subnet: Subnet) -> float:
    return float(losses_of(subnet).mean(dtype=float))


def outcome_of(task: Task) -> Outcome:
    if task.images is None:
        return Outcome(dict(cross_entropy=mean_of(task.subnet), top1=50.0))
    return Outcome(losses=losses_of(task.subnet)[task.images])


class Worker(InProcess):
    """An executor that remembers its tasks and how many images gave something.

    Args:
        outcome: Outcome of a task.
        pick: Place of the next task among those that wait.
    """

    def __init__(self, outcome=outcome_of, pick=lambda waiting: 0):
        super().__init__(outcome)
        self.pick = pick
        self.tasks, self.images = [], 0

    def collect(self) -> tuple[Task, Outcome]:
        self.waiting.rotate(-self.pick(self.waiting))
        task, outcome = super().collect()
        self.tasks.append(task)
        if outcome.metrics or outcome.losses is not None:
            self.images += IMAGES if task.images is None else len(task.images)
        return task, outcome


def new_scorer(path: Path, executor, race: dict | None = None, **kwargs) -> CandidateScorer:
    rules = None if race is None else RaceRules(**race)
    history = History(path)
    return CandidateScorer(executor, IMAGES, LIMITS, history, race=rules, **kwargs)


def evolve(
    scorer: CandidateScorer, phase='search', space=LARGE, keep=4, precision='float32', **kwargs
):
    search = Evolution(space, lambda subnet: True, **SIZES | kwargs)
    for _ in scorer.run(search, phase, precision, keep):
        pass
    return search


def subnets_of(lines: list[dict]) -> list[Subnet]:
    return [Subnet.from_dict(line['subnet']) for line in lines]


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / 'search_history.jsonl'


@pytest.mark.parametrize('sign', [1, -1])
def test_the_known_optimum_is_found(path, sign):
    worker = Worker(lambda task: Outcome(dict(far=sign * distance(task.subnet))))
    scorer = new_scorer(path, worker, score='far', sign=sign)
    evolve(scorer, population=50, generations=20, parents=10, mutations=25, crossovers=25)
    assert subnets_of(scorer.best(1)) == [OPTIMUM]
    assert scorer.best(1)[0]['far'] == 0


@pytest.mark.parametrize('seed', range(4))
def test_a_race_finds_the_same_with_fewer_images(path, seed):
    plain, raced = Worker(), Worker()
    whole = new_scorer(path.with_name('whole'), plain)
    race = new_scorer(path, raced, RULES, seed=seed)
    sizes = dict(population=30, mutations=10, crossovers=10, seed=seed)
    for scorer in (whole, race):
        evolve(scorer, **sizes)
    assert subnets_of(race.best(4)) == subnets_of(whole.best(4))
    assert race.exhaustive == whole.exhaustive == whole.evaluated == plain.images
    assert race.evaluated == raced.images < 0.6 * plain.images


def test_lines_are_those_of_the_evaluation(path):
    scorer = new_scorer(path, Worker())
    search = evolve(scorer)
    assert read_history(path) == scorer.lines
    assert subnets_of(scorer.lines) == list(search.scores)
    for line, subnet in zip(scorer.lines, search.scores, strict=True):
        assert line['cross_entropy'] == mean_of(subnet) == search.scores[subnet]
        assert line['params'] == count_params(subnet)
        assert (line['images'], line['error'], line['top1']) == (IMAGES, 0.0, 50.0)
        assert (line['phase'], line['precision']) == ('search', 'float32')
    assert [line['generation'] for line in scorer.lines] == [g for g in range(4) for _ in range(12)]


def test_lines_of_a_race_say_on_what_they_rest(path):
    worker = Worker()
    scorer = new_scorer(path, worker, RULES)
    search = evolve(scorer, population=30)
    seen = Counter()
    for task in worker.tasks:
        seen[task.subnet] += IMAGES if task.images is None else len(task.images)
    whole = [line for line in scorer.lines if line['images'] == IMAGES]
    dropped = [line for line in scorer.lines if line['images'] < IMAGES]
    assert {
        s: line['images'] for line, s in zip(scorer.lines, subnets_of(scorer.lines), strict=True)
    } == seen
    assert all(line['error'] == 0 for line in whole)
    assert [line['cross_entropy'] for line in whole] == list(map(mean_of, subnets_of(whole)))
    off = [
        line['cross_entropy'] - mean_of(s)
        for line, s in zip(dropped, subnets_of(dropped), strict=True)
    ]
    z = np.array(off) / [line['error'] for line in dropped]
    assert 0.5 < z.std() < 1.3
    assert np.abs(z).max() < 4
    assert all(
        search.scores[s] == line['cross_entropy']
        for line, s in zip(scorer.lines, subnets_of(scorer.lines), strict=True)
    )


def run_all(path: Path, executor, race, precision='bfloat16') -> CandidateScorer:
    """Both phases, in a space where they meet the same subnets, and the finals of both."""
    scorer = new_scorer(path, executor, race)
    evolve(scorer, 'search', SPACE, precision=precision, population=24)
    scorer.score_again(subnets_of(scorer.best(3, phase='search')), 0)
    evolve(
        scorer, 'baseline', SPACE, 1, precision, population=24, mutations=0, crossovers=0, seed=1
    )
    scorer.score_again(subnets_of(scorer.best(1, phase='baseline')), 1)
    return scorer


@pytest.mark.parametrize('race', [None, RULES], ids=['whole', 'race'])
@pytest.mark.parametrize('seed', range(3))
def test_outcomes_may_arrive_in_any_order(path, race, seed):
    rng = np.random.default_rng(seed)
    shuffled = Worker(pick=lambda waiting: int(rng.integers(len(waiting))))
    run_all(path, Worker(), race)
    run_all(path.with_name('shuffled'), shuffled, race)
    assert path.with_name('shuffled').read_bytes() == path.read_bytes()


class Killed(BaseException):
    """In place of SIGKILL."""


def evaluates(left: int) -> InProcess:
    """Evaluates some tasks, then dies."""
    rest = iter(range(left))

    def outcome(task: Task) -> Outcome:
        if next(rest, None) is None:
            raise Killed
        return outcome_of(task)

    return InProcess(outcome)


def resumed(folder: Path, race, moments: list[int]) -> tuple[bytes, int]:
    """The history of a search that is killed after each of some numbers of outcomes."""
    path = folder / 'history'
    for left in [*moments, 10**6]:
        executor = Journalled(evaluates(left), Journal(folder / 'journal'))
        try:
            scorer = run_all(path, executor, race)
        except Killed:
            continue
    return path.read_bytes(), scorer.evaluated


@given(
    race=st.sampled_from([None, RULES]),
    moments=st.lists(st.integers(0, 400), min_size=1, max_size=3),
)
@settings(repeatable, max_examples=12)
def test_a_search_killed_at_any_moment_writes_the_same_lines(race, moments):
    with tempfile.TemporaryDirectory() as folder, mock.patch('os.fsync'):  # no power fails here
        expected = run_all(Path(folder, 'whole'), Worker(), race)
        found = resumed(Path(folder), race, moments)
        assert found == (Path(folder, 'whole').read_bytes(), expected.evaluated)


@pytest.mark.parametrize('race', [None, RULES], ids=['whole', 'race'])
def test_no_subnet_that_is_known_whole_is_evaluated_again(path, race):
    worker = Worker()
    scorer = new_scorer(path, worker, race)
    first = evolve(scorer, 'search', SPACE, population=24)
    before, whole = len(worker.tasks), set(subnets_of(scorer.best(999)))
    second = evolve(scorer, 'baseline', SPACE, population=24, mutations=0, crossovers=0, seed=1)
    again = whole & set(second.scores)
    assert len(again) > 3
    assert not again & {task.subnet for task in worker.tasks[before:]}
    assert all(first.scores[subnet] == second.scores[subnet] for subnet in again)
    lines = [line for line in scorer.lines if line['phase'] == 'baseline']
    assert set(subnets_of(lines)) == set(second.scores)
    assert scorer.exhaustive == IMAGES * len({*first.scores, *second.scores})
    assert scorer.evaluated == worker.images


@pytest.mark.parametrize('seed', range(4))
def test_what_one_phase_dropped_may_be_the_best_of_another(path, seed):
    scorer = new_scorer(path, Worker(), RULES)
    evolve(scorer, 'search', SPACE, keep=1, population=40)
    random = dict(population=10, generations=3, mutations=0, crossovers=0, seed=seed + 1)
    drawn = evolve(scorer, 'baseline', SPACE, keep=1, **random).scores
    dropped = {s for s in drawn if scorer.known[s, 'float32']['images'] < IMAGES}
    assert dropped
    best = scorer.best(1, phase='baseline')
    assert subnets_of(best) == [min(drawn, key=mean_of)]
    assert best[0]['images'] == IMAGES


def test_precisions_are_scored_apart(path):
    worker = Worker()
    scorer = new_scorer(path, worker)
    first = evolve(scorer, precision='bfloat16')
    second = evolve(scorer, 'baseline', precision='float32')
    assert first.scores == second.scores
    assert [task.precision for task in worker.tasks] == ['bfloat16'] * 48 + ['float32'] * 48
    assert scorer.exhaustive == scorer.evaluated == 96 * IMAGES


def failing(share: float):
    """Some subnets give nothing."""

    def outcome(task):
        fails = crc32(repr(task.subnet).encode()) % 100 < 100 * share
        return Outcome() if fails else outcome_of(task)

    return outcome


@pytest.mark.parametrize('race', [None, RULES], ids=['whole', 'race'])
def test_subnets_that_do_not_fit_in_memory_have_no_score(path, race):
    worker = Worker(failing(0.4))
    scorer = new_scorer(path, worker, race)
    search = evolve(scorer, population=30)
    failed = [s for s in search.scores if not worker.evaluate(Task(0, s)).metrics]
    assert len(failed) > 20
    assert all(np.isnan(search.scores[subnet]) for subnet in failed)
    assert all(np.isfinite(search.scores[s]) for s in search.scores if s not in failed)
    for line, subnet in zip(scorer.lines, subnets_of(scorer.lines), strict=True):
        assert ('cross_entropy' in line) == (subnet not in failed)
        if subnet in failed:
            assert (line['images'], line['error']) == (0, 0.0)
    fit = [subnet for subnet in search.scores if subnet not in failed]
    assert subnets_of(scorer.best(4)) == sorted(fit, key=mean_of)[:4]
    assert scorer.exhaustive == IMAGES * len(fit)
    assert scorer.evaluated == worker.images
    assert len(read_history(path)) == len(search.scores)


def test_a_search_of_which_nothing_fits_in_memory_ends(path):
    scorer = new_scorer(path, Worker(lambda task: Outcome()), RULES)
    evolve(scorer)
    assert scorer.best(1) == []
    assert scorer.evaluated == scorer.exhaustive == 0
    assert len(scorer.lines) == 48


@pytest.mark.parametrize('bad', [nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_never_win(path, bad):
    def outcome(task):
        is_bad = task.subnet.embed_dim == 24
        return Outcome(dict(cross_entropy=bad)) if is_bad else outcome_of(task)

    scorer = new_scorer(path, Worker(outcome))
    search = evolve(scorer)
    assert {subnet.embed_dim for subnet in search.best(4)} <= {16, 32}
    assert {subnet.embed_dim for subnet in subnets_of(scorer.best(48))} <= {16, 32}


@pytest.mark.parametrize('race', [None, RULES], ids=['whole', 'race'])
@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_the_best_are_scored_again_in_float32(path, race, precision):
    worker = Worker()
    scorer = new_scorer(path, worker, race)
    evolve(scorer, precision=precision)
    best, before, exhaustive = subnets_of(scorer.best(3)), len(worker.tasks), scorer.exhaustive
    scorer.score_again(best[::-1], 7)
    finals = worker.tasks[before:]
    assert [(t.subnet, t.precision, t.images) for t in finals] == [
        (subnet, 'float32', None) for subnet in best[::-1]
    ]
    lines = scorer.lines[-3:]
    assert subnets_of(lines) == best[::-1]
    assert all(
        (line['phase'], line['generation'], line['top1']) == ('finals', 7, 50.0) for line in lines
    )
    assert subnets_of(scorer.best(9, phase='finals', generation=7)) == best
    assert scorer.evaluated == worker.images
    # Without a race there would be no float32 score to make sure of; in bfloat16 there would.
    assert scorer.exhaustive - exhaustive == (3 * IMAGES if precision == 'bfloat16' else 0)


def test_a_subnet_is_scored_again_but_once(path):
    worker = Worker()
    scorer = new_scorer(path, worker, RULES)
    evolve(scorer)
    best, before = subnets_of(scorer.best(4)), len(worker.tasks)
    scorer.score_again(best[:2], 0)
    scorer.score_again(best[1:], 1)
    assert [task.subnet for task in worker.tasks[before:]] == best
    for generation, subnets in enumerate((best[:2], best[1:])):
        lines = scorer.best(9, phase='finals', generation=generation)
        assert subnets_of(lines) == subnets
        assert all(line['top1'] == 50.0 for line in lines)


def test_the_best_are_of_a_phase_and_seen_whole(path):
    scorer = new_scorer(path, Worker(), RULES)
    evolve(scorer, 'search', population=30)
    evolve(scorer, 'baseline', population=30, mutations=0, crossovers=0, seed=1)
    for phase in ('search', 'baseline'):
        lines = [line for line in scorer.lines if line['phase'] == phase]
        whole = [line for line in lines if line['images'] == IMAGES]
        assert 4 <= len(whole) < len(lines)
        assert scorer.best(999, phase=phase) == sorted(
            whole, key=lambda line: line['cross_entropy']
        )
    assert scorer.best(1, phase='finals') == []


def test_a_set_smaller_than_the_first_slice_is_scored_whole_by_losses(path):
    scorer = new_scorer(path, Worker(), dict(first=IMAGES))
    search = evolve(scorer)
    assert scorer.evaluated == scorer.exhaustive == 48 * IMAGES
    assert search.scores == {subnet: mean_of(subnet) for subnet in search.scores}


def test_every_line_is_told(path):
    told = []
    scorer = new_scorer(path, Worker(), RULES, on_line=told.append)
    evolve(scorer)
    assert told == scorer.lines


def test_generations_are_yielded_as_they_are_scored(path):
    scorer = new_scorer(path, Worker())
    search = Evolution(LARGE, lambda subnet: True, **SIZES)
    counts = [(n, len(scorer.lines)) for n in scorer.run(search, 'search', 'float32', 4)]
    assert counts == [(1, 12), (2, 24), (3, 36), (4, 48)]
