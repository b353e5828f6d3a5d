"""Many tasks, one after the other, by one process or by several that share their folders."""

import fcntl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PAUSE = 2.0  # seconds between looks at what other processes do


@dataclass(frozen=True)
class Task:
    """Something that leaves a file when it is done.

    Args:
        name: Shown when it is done.
        cost: How long it takes, in any unit that all tasks share.
        lock: A file that a process holds while it is at it.
        is_done: Whether it is there already.
        is_ready: Whether what it needs is there.
        do: Do it; returns what is shown.
    """

    name: str
    cost: float
    lock: Path
    is_done: Callable[[], bool]
    is_ready: Callable[[], bool]
    do: Callable[[], str]


def work_off(tasks: Sequence[Task], say: Callable[[str], None] = print) -> None:
    """Do all tasks that are not done; returns when all are, those of other processes included."""
    open_tasks = [task for task in tasks if not task.is_done()]
    say(f'{len(tasks) - len(open_tasks)} of {len(tasks)} are there')
    spent = done = 0.0
    while open_tasks:
        started = time.monotonic()
        task, shown = _do_one(open_tasks)
        open_tasks = [t for t in open_tasks if t is not task and not t.is_done()]
        if task is None:
            time.sleep(PAUSE)
            continue
        seconds = time.monotonic() - started
        spent, done = spent + seconds, done + task.cost
        left = spent / done * sum(t.cost for t in open_tasks) / 60
        say(
            f'[{len(tasks) - len(open_tasks)}/{len(tasks)}] {task.name}: {shown}; {seconds:.0f} s, '
            f'about {left:.0f} min left for one process'
        )


def _do_one(tasks: Sequence[Task]) -> tuple[Task | None, str]:
    """Do the first task that is ready and that no other process is at; none if there is none."""
    for task in tasks:
        if task.is_ready():
            with _held(task.lock) as is_ours:
                if is_ours and not task.is_done():
                    return task, task.do()
    return None, ''


@contextmanager
def _held(path: Path) -> Iterator[bool]:
    """Hold a lock, which ends with the process however that ends; whether it is ours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True
