"""Ranks that share candidates: real processes on gloo, and what happens when one fails."""

import os
import signal
import time
from pathlib import Path

import torch.distributed as dist
from tiny import SPACE
from torch import multiprocessing

from tas_lora import UserError
from tas_lora.engine.search.crew import Crew
from tas_lora.search import Outcome, Task

SUBNET = SPACE.smallest()


def tasks(count: int, first: int = 0) -> list[Task]:
    return [Task(first + number, SUBNET) for number in range(count)]


def work(task: Task) -> Outcome:
    """Takes longer for some; says who did it."""
    time.sleep(0.05 if task.number == 0 else 0.005)
    return Outcome(dict(number=task.number, rank=dist.get_rank() if dist.is_initialized() else 0))


def fail_on_rank_1(task: Task) -> Outcome:
    if dist.get_rank() == 1:
        raise RuntimeError('a shape is wrong')
    return work(task)


def fail_on_rank_0(task: Task) -> Outcome:
    if dist.get_rank() == 0:
        raise UserError('image 3 cannot be read')
    return work(task)


def die_on_rank_1(task: Task) -> Outcome:
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return work(task)


def _job(rank: int, size: int, folder: Path, job) -> None:
    os.environ.update(MASTER_ADDR='localhost')
    dist.init_process_group('gloo', rank=rank, world_size=size, init_method=f'file://{folder}/init')
    said = folder / f'{rank}'
    try:
        with Crew(job, patience=5) as crew:
            if crew.leads:
                rounds = [tasks(12), tasks(1, 12), [], tasks(5, 13)]
                found = [list(crew.perform(round)) for round in rounds]
                crew.farewell = len(found)
                assert [sorted(t.number for t, _ in r) for r in found] == [
                    [t.number for t in r] for r in rounds
                ]
                assert all(outcome.metrics['number'] == t.number for r in found for t, outcome in r)
                ranks = {int(outcome.metrics['rank']) for t, outcome in found[0]}
                said.write_text(f'{sorted(ranks)}')
            else:
                said.write_text(f'{crew.serve()}')
    except (UserError, RuntimeError) as error:
        said.write_text(f'{type(error).__name__}: {error}')
    os._exit(0)  # a thread of gloo may abort a process that ends in Python's own way


def crew_of(size: int, folder: Path, job) -> list[str]:
    """What each rank said at its end."""
    context = multiprocessing.get_context('fork')  # quick: nothing is started yet
    processes = [
        context.Process(target=_job, args=(rank, size, folder, job)) for rank in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode is not None
    files = [folder / str(rank) for rank in range(size)]
    return [file.read_text() if file.exists() else 'nothing' for file in files]


def test_alone_it_works_in_order():
    with Crew(work) as crew:
        assert crew.leads
        assert [task.number for task, _ in crew.perform(tasks(3))] == [0, 1, 2]


def test_three_ranks_share_all_tasks(tmp_path):
    leader, *others = crew_of(3, tmp_path, work)
    assert leader == '[0, 1, 2]'  # all took part
    assert others == ['4', '4']  # and went home with the farewell


def test_the_leader_says_what_failed_elsewhere(tmp_path):
    leader, other = crew_of(2, tmp_path, fail_on_rank_1)
    assert leader == 'UserError: rank 1: RuntimeError: a shape is wrong'
    assert other == 'RuntimeError: a shape is wrong'


def test_the_others_go_when_the_leader_fails(tmp_path):
    leader, other = crew_of(2, tmp_path, fail_on_rank_0)
    assert leader == 'UserError: image 3 cannot be read'
    assert other == 'UserError: rank 0: UserError: image 3 cannot be read'


def test_a_rank_that_is_killed_ends_the_search(tmp_path):
    leader, other = crew_of(2, tmp_path, die_on_rank_1)
    assert leader.startswith('UserError: 1 candidates that other ranks took have no score after 5')
    assert 'go on by --resume' in leader
    assert other == 'nothing'
