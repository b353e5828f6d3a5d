"""Ranks that share candidates: real processes on gloo, and what happens when one fails."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch.distributed as dist
from tiny import SPACE
from torch import multiprocessing

from tas_lora import UserError
from tas_lora.engine.search.crew import Crew
from tas_lora.search import Outcome, Task

SUBNET = SPACE.smallest()
SILENCE = 1.0  # seconds


def tasks(count: int, first: int = 0) -> list[Task]:
    return [Task(first + number, SUBNET) for number in range(count)]


def work(task: Task) -> Outcome:
    """Takes longer for some; says who did it."""
    time.sleep(0.05 if task.number == 0 else 0.005)
    return Outcome(dict(number=task.number, rank=dist.get_rank() if dist.is_initialized() else 0))


def lead(crew: Crew) -> str:
    """Four rounds, all of whose tasks come back and are kept; says which ranks took part."""
    rounds, kept = [tasks(12), tasks(1, 12), [], tasks(5, 13)], []
    found = [list(crew.perform(round, lambda *pair: kept.append(pair))) for round in rounds]
    crew.result = len(found)
    assert [sorted(t.number for t, _ in r) for r in found] == [
        [t.number for t in r] for r in rounds
    ]
    assert sorted(t.number for t, _ in kept) == list(range(18))
    everything = [*kept, *(pair for r in found for pair in r)]
    assert all(outcome.metrics['number'] == t.number for t, outcome in everything)
    return str(sorted({int(outcome.metrics['rank']) for _, outcome in found[0]}))


def _job(rank: int, size: int, folder: Path, job, leading) -> None:
    os.environ.update(MASTER_ADDR='localhost')
    (folder / f'pid{rank}').write_text(str(os.getpid()))
    dist.init_process_group('gloo', rank=rank, world_size=size, init_method=f'file://{folder}/init')
    try:
        with Crew(job, beat=0.1, silence=SILENCE, grace=0.5) as crew:
            said = leading(crew) if crew.leads else f'{crew.serve()}'
    except Exception as error:
        said = f'{type(error).__name__}: {error}'
    (folder / f'{rank}').write_text(said)
    os._exit(0)  # a thread of gloo may abort a process that ends in Python's own way


def crew_of(size: int, folder: Path, job, leading=lead) -> list[str]:
    """What each rank said at its end."""
    context = multiprocessing.get_context('fork')  # quick: nothing is started yet
    processes = [
        context.Process(target=_job, args=(rank, size, folder, job, leading), daemon=True)
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
        assert process.exitcode is not None
    files = [folder / str(rank) for rank in range(size)]
    return [file.read_text() if file.exists() else 'nothing' for file in files]


def at_rank(rank: int, action) -> Callable[[Task], Outcome]:
    """Work that one of the ranks does in another way."""
    return partial(_at_rank, rank, action)


def _at_rank(rank: int, action, task: Task) -> Outcome:
    if dist.get_rank() == rank:
        action()
    return work(task)


def fail(error: Exception):
    raise error


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def test_alone_it_works_in_order():
    kept = []
    with Crew(work) as crew:
        assert crew.leads
        for count, (task, outcome) in enumerate(crew.perform(tasks(3), lambda *p: kept.append(p))):
            assert (task.number, outcome) == (count, Outcome(dict(number=count, rank=0)))
            assert kept[count:] == [(task, outcome)]
    assert len(kept) == 3


def test_three_ranks_share_all_tasks(tmp_path):
    leader, *others = crew_of(3, tmp_path, work)
    assert leader == '[0, 1, 2]'  # all took part
    assert others == ['4', '4']  # and went home with the result


def test_what_others_finish_is_kept_while_the_leader_is_at_work(tmp_path):
    kept = []

    def wait_for_others():  # the leader's own task lasts until it has kept all of theirs
        end = time.monotonic() + 20
        while len(kept) < 5:
            assert time.monotonic() < end, kept
            time.sleep(0.01)

    def leading(crew):
        found = list(crew.perform(tasks(6), lambda task, outcome: kept.append(outcome)))
        return str([[int(o.metrics['rank']) for o in kept], len(found)])

    leader, _ = crew_of(2, tmp_path, at_rank(0, wait_for_others), leading)
    assert leader == '[[1, 1, 1, 1, 1, 0], 6]'


def test_outcomes_that_cannot_be_kept_end_the_search(tmp_path):
    def leading(crew):
        return str(list(crew.perform(tasks(6), lambda *_: fail(OSError('disk is full')))))

    leader, other = crew_of(2, tmp_path, work, leading)
    assert leader == 'OSError: disk is full'
    assert other == 'UserError: rank 0: OSError: disk is full'


def test_the_leader_says_what_failed_elsewhere(tmp_path):
    leader, *others = crew_of(3, tmp_path, at_rank(1, lambda: fail(RuntimeError('a wrong shape'))))
    assert leader == 'UserError: rank 1: RuntimeError: a wrong shape'
    assert others == [
        'RuntimeError: a wrong shape',
        'UserError: rank 0: UserError: rank 1: RuntimeError: a wrong shape',
    ]


def test_the_others_go_when_the_leader_fails(tmp_path):
    error = UserError('image 3 cannot be read')
    leader, other = crew_of(2, tmp_path, at_rank(0, lambda: fail(error)))
    assert leader == 'UserError: image 3 cannot be read'
    assert other == 'UserError: rank 0: UserError: image 3 cannot be read'


def test_all_may_fail_at_once(tmp_path):
    def everywhere(task):
        raise UserError(f'rank {dist.get_rank()} has no disk')

    leader, *others = crew_of(3, tmp_path, everywhere)
    assert re.fullmatch(r'UserError: (rank \d: UserError: )?rank \d has no disk', leader)
    assert all('has no disk' in other for other in others)


def test_a_rank_that_is_killed_ends_the_search(tmp_path):
    leader, other = crew_of(2, tmp_path, at_rank(1, die))
    assert leader.startswith('UserError: rank 1 has given no sign of life for 1 s')
    assert 'continue with --resume' in leader
    assert other == 'nothing'


def test_a_leader_that_is_killed_is_missed_at_once(tmp_path):
    leader, *others = crew_of(3, tmp_path, at_rank(0, die))
    assert leader == 'nothing'
    assert all(other.startswith('UserError: rank 0 of the search has gone') for other in others)


def test_a_busy_rank_is_not_taken_for_dead(tmp_path):
    def count_for_long():
        end = time.monotonic() + 3 * SILENCE
        while time.monotonic() < end:
            sum(range(1000))  # Python all the time

    def leading(crew):
        return str(len(list(crew.perform(tasks(2)))))

    assert crew_of(2, tmp_path, at_rank(1, count_for_long), leading) == ['2', 'None']


def test_ranks_that_were_suspended_go_on(tmp_path):
    def suspend_both():
        leader, other = (int((tmp_path / f'pid{rank}').read_text()) for rank in (0, 1))
        # Around its own absence the leader looks in vain; the sum of all that is no silence.
        away = f'sleep 0.3; kill -STOP {other}; sleep 0.3; kill -STOP {leader}'
        back = f'sleep {2 * SILENCE}; kill -CONT {leader}; sleep 0.3; kill -CONT {other}'
        subprocess.run(['sh', '-c', f'{away}; {back}'], check=True)

    def leading(crew):
        return str(len(list(crew.perform(tasks(2)))))

    assert crew_of(2, tmp_path, at_rank(1, suspend_both), leading) == ['2', 'None']


TOOL = """
import time
from types import SimpleNamespace
import torch.distributed as dist
from test_crew import tasks, work
from tas_lora import cli
from tas_lora.engine.search.crew import Crew
from tas_lora.engine.search.progress import stopped_by_signals

def fail_early(task):
    if dist.get_rank() == 1:
        raise OSError('image 3 cannot be read')
    time.sleep(2)  # longer than a launcher needs to see that a rank has ended
    return work(task)

def main():
    dist.init_process_group('gloo')
    runner = SimpleNamespace(logger=SimpleNamespace(info=print))
    try:
        with stopped_by_signals(runner, lambda: 0), Crew(fail_early) as crew:
            list(crew.perform(tasks(4))) if crew.leads else crew.serve()
    finally:
        time.sleep(1 - dist.get_rank())  # the leader has more to bring to an end

cli.run(main)
"""


@pytest.mark.full
def test_under_a_launcher_the_reason_is_one_line(tmp_path):
    tool = tmp_path / 'tool.py'
    tool.write_text(TOOL)
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2']
    command += [tool]
    environment = os.environ | dict(PYTHONPATH=str(Path(__file__).parent), OMP_NUM_THREADS='1')
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = [line for line in done.stderr.splitlines() if line.startswith('error:')]
    assert lines == ['error: rank 1: OSError: image 3 cannot be read'], done.stderr
    cause = done.stderr.partition('Root Cause')[2]
    assert re.search(r'rank +: 0 ', cause), done.stderr  # the first to end
    assert re.search(r'exitcode +: 2 ', cause), done.stderr
