"""The simulation of a search on many workers."""

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import call_tool
from tiny import SPACE

from tas_lora import count_flops, count_params
from tas_lora.analysis.scaling import Landscape, Plan, SimulatedWorkers, TaskTimes, simulate
from tas_lora.search import Evolution, Journal, Limits, Outcome, RaceRules, Task

SUBNET = SPACE.smallest()
EVOLUTION = dict(population=9, generations=3, parents=4, mutations=4, crossovers=4)
STEADY = TaskTimes(1.0, 1e-9, np.ones(1))


def new_plan(**kwargs) -> Plan:
    limits = Limits(None, dict(params=count_params))
    return Plan(SPACE, limits, count_flops, 1000, evolution=EVOLUTION, **kwargs)


def test_workers_take_tasks_in_turn():
    seconds = [4.0, 1.0, 1.0, 2.0, 3.0]
    workers = SimulatedWorkers(2, lambda task: seconds[task.number], lambda task: Outcome())
    for number in range(4):
        workers.submit(Task(number, SUBNET))
    # The first worker is busy for 4 s; the second does tasks 1, 2 and 3 until then.
    order = [(workers.collect()[0].number, workers.now) for _ in range(3)]
    assert order == [(1, 1.0), (2, 2.0), (0, 4.0)]
    workers.collect()
    assert workers.lost() == [0.0]
    workers.submit(Task(4, SUBNET))
    workers.collect()
    assert workers.now == 7.0
    assert workers.lost() == [3.0]
    assert workers.busy == sum(seconds)


def test_times_are_fitted_in_spite_of_slow_tasks():
    rng = np.random.default_rng(0)
    work = rng.uniform(1e9, 1e12, 400)
    seconds = (0.5 + 2e-12 * work) * rng.uniform(0.9, 1.1, 400)
    seconds[::8] *= 10
    times = TaskTimes.fit(work, seconds)
    assert times.rate == pytest.approx(2e-12, rel=0.05)
    assert times.start == pytest.approx(0.5, rel=0.3)
    draws = [times.draw(1e12, number) for number in range(4000)]
    assert np.median(draws) == pytest.approx(2.5, rel=0.1)
    assert np.mean(np.array(draws) > 20) == pytest.approx(1 / 8, abs=0.02)
    assert times.draw(1e12, 7) == times.draw(1e12, 7)


def test_slow_tasks_are_as_many_as_asked_for():
    times = TaskTimes(1.0, 0.0, np.ones(1), slow=0.1)
    draws = np.array([times.draw(0.0, number) for number in range(5000)])
    slow = draws[draws > 1]
    assert len(slow) == pytest.approx(500, abs=80)
    assert (slow.min() >= 2, slow.max() <= 20) == (True, True)


def test_tasks_of_equal_work_have_no_slope():
    times = TaskTimes.fit(np.full(5, 1e9), np.arange(1.0, 6.0))
    assert (times.rate, times.start) == (0.0, 3.0)


def generation_times(landscape: Landscape) -> list[list[float]]:
    """Seconds of each task of an exhaustive search, from a loop of its own."""
    search, found = Evolution(SPACE, lambda subnet: True, **EVOLUTION), []
    while subnets := search.ask():
        works = [count_flops(subnet) * 1000 for subnet in subnets]
        found.append([1.0 + 1e-9 * work for work in works])
        search.tell({s: landscape.losses(s).mean(dtype=float) for s in subnets})
    return found


def test_barriers_cost_what_the_slowest_of_each_generation_does():
    landscape = Landscape(SPACE, 1000)
    times = generation_times(landscape)
    one, many = (simulate(new_plan(), workers, STEADY, landscape) for workers in (1, 50))
    assert one.seconds == pytest.approx(sum(map(sum, times)))
    assert many.seconds == pytest.approx(sum(map(max, times)))
    first = 1 - sum(times[0]) / (50 * max(times[0]))
    share = max(times[0]) / many.seconds
    assert many.lost['first generation'] == pytest.approx(first * share)
    for run in (one, many):
        assert run.use + sum(run.lost.values()) == pytest.approx(1)


@pytest.mark.parametrize('race', [None, RaceRules(first=200, controls=5, strata=5)])
def test_the_search_is_the_same_on_any_number_of_workers(race):
    runs = [
        simulate(new_plan(race=race, finals=1), n, STEADY, Landscape(SPACE, 1000)) for n in (1, 7)
    ]
    assert runs[0].best == runs[1].best
    assert runs[0].work == pytest.approx(runs[1].work)
    assert runs[1].seconds < runs[0].seconds / 2
    for run in runs:
        assert run.use + sum(run.lost.values()) == pytest.approx(1)
        assert (run.lost['slices'] > 0) == (race is not None and run.workers > 1)


def test_an_overlap_employs_more_workers_than_there_are_candidates():
    evolution = EVOLUTION | dict(generations=8, overlap=1)
    landscape = Landscape(SPACE, 1000)
    plain = simulate(new_plan(), 18, STEADY, landscape)
    ahead = simulate(replace(new_plan(), evolution=evolution), 18, STEADY, landscape)
    assert plain.use < 0.5 < ahead.use


@pytest.mark.full
def test_the_tool_reads_a_search(digits_config, capsys, tmp_path):
    from mmengine.runner import Runner

    cfg = digits_config('search')
    cfg.val_cfg.evolution = dict(EVOLUTION)
    Runner.from_cfg(cfg).val()
    config = tmp_path / 'planned.py'
    cfg.dump(config)
    found = call_tool(
        'analysis/search_scaling.py',
        config,
        cfg.work_dir,
        *('--workers', 1, 9, '--markdown', tmp_path / 'table.md', '--out', tmp_path),
    )
    assert found == 0
    rows = [line.split(' | ') for line in (tmp_path / 'table.md').read_text().splitlines()[4:]]
    assert [(row[0].strip('| '), row[2]) for row in rows] == [
        (name, workers) for name in ('exhaustive', 'exhaustive, overlap 1') for workers in '19'
    ]
    assert [row[4] for row in rows[::2]] == ['1.0', '1.0']
    speedups = json.loads((tmp_path / 'search_scaling.json').read_text())['speedups']
    assert 1 < speedups['exhaustive']['9'] <= 9
    assert (tmp_path / 'search_scaling.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.full
def test_the_tool_needs_times(tmp_path, capsys):
    line = dict(subnet=SUBNET.to_dict(), phase='search', generation=0, images=9, flops=5)
    (tmp_path / 'search_history.jsonl').write_text(json.dumps(line) + '\n')
    journal = Journal(tmp_path / 'search_journal.jsonl')
    journal.append(Task(0, SUBNET), Outcome(dict(cross_entropy=1.0)))
    assert call_tool('analysis/search_scaling.py', 'configs/digits_search.py', tmp_path) == 2
    assert 'no task has a time' in capsys.readouterr().err
