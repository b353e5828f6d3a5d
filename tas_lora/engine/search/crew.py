"""Ranks that share the candidates of a search: each takes the next one when it is free."""

import os
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import numpy as np
from mmengine.dist import broadcast_object_list, get_rank, get_world_size
from torch.distributed import TCPStore

from ...errors import UserError
from ...search import Outcome, Task
from .messages import pack, pack_outcome, pack_tasks, unpack, unpack_outcome, unpack_tasks

_POLL = 0.002  # seconds
_OVER = 'over'
_ALL = 10**9  # tasks; more than any round has


class Crew:
    """The first rank leads: it says what there is to do, takes part in it, and is told the rest.

    Tasks, outcomes and who takes what go through a key-value store of torch, not through
    collectives, so that the ranks need not keep step and any backend will do. As a context it
    sends the others home, whatever happens to the leader.

    Args:
        work: Evaluates a task.
        patience: Seconds that the leader waits for an outcome, and the others for their tasks.
    """

    def __init__(self, work: Callable[[Task], Outcome], patience: float = 7200.0):
        self.work, self.patience = work, patience
        self.rank, self.size = get_rank(), get_world_size()
        self.store = _shared_store(patience) if self.size > 1 else None
        self.round = 0
        self.farewell = None

    @property
    def leads(self) -> bool:
        """Whether this is the rank that leads."""
        return self.rank == 0

    def __enter__(self) -> 'Crew':
        return self

    def __exit__(self, kind, error, trace) -> None:
        if self.store is not None and self.leads:
            self._count('taken', _ALL)
            message = None if error is None else f'{kind.__name__}: {error}'
            farewell = pack({_OVER: self.farewell, 'error': message})
            self.store.set(f'{self.round + 1}/tasks', farewell)
            if error is None or isinstance(error, Exception):  # a signal has reached all
                self._wait_for_leavers()

    def perform(self, tasks: list[Task]) -> Iterator[tuple[Task, Outcome]]:
        """Outcomes of tasks as they come, in any order; for the leader.

        Raises:
            UserError: If another rank failed, or does not answer.
        """
        if self.store is None or len(tasks) < 2:
            yield from ((task, self.work(task)) for task in tasks)
            return
        self.round += 1
        self.store.set(f'{self.round}/tasks', pack_tasks(tasks))
        missing, arrived = len(tasks), 0
        while missing:
            if (number := self._take(len(tasks))) is not None:
                yield tasks[number], self.work(tasks[number])
                missing -= 1
            else:
                self._wait_for_answer(arrived, missing)
            while arrived < self._count('done'):
                arrived, missing = arrived + 1, missing - 1
                number, outcome = self._collect(arrived)
                yield tasks[number], outcome

    def serve(self):
        """Take tasks until the leader needs no more; returns its farewell.

        Raises:
            UserError: If the leader failed, or has gone.
        """
        while True:
            self.round += 1
            message, images = self._next_message()
            if _OVER in message:
                self.store.add('left', 1)
                if message['error'] is not None:
                    raise UserError(f'rank 0: {message["error"]}')
                return message[_OVER]
            tasks = unpack_tasks(message, images)
            while (number := self._take(len(tasks))) is not None:
                self._work_and_tell(number, tasks[number])

    def _work_and_tell(self, number: int, task: Task) -> None:
        try:
            outcome = self.work(task)
        except Exception as error:
            self._tell(pack(dict(error=f'rank {self.rank}: {type(error).__name__}: {error}')))
            time.sleep(1)  # a launcher ends all as soon as one has ended: let the leader speak
            raise
        self._tell(pack_outcome(number, outcome))

    def _tell(self, answer: bytes) -> None:
        place = self._count('told', 1)
        self.store.set(f'{self.round}/{place}', answer)
        self._count('done', 1)

    def _collect(self, place: int) -> tuple[int, Outcome]:
        key = f'{self.round}/{place}'
        message, losses = unpack(self.store.get(key))
        self.store.delete_key(key)
        if 'error' in message:
            raise UserError(message['error'])
        return unpack_outcome(message, losses)

    def _take(self, count: int) -> int | None:
        """The next task that nobody has."""
        number = self._count('taken', 1) - 1
        return number if number < count else None

    def _count(self, what: str, step: int = 0) -> int:
        return self.store.add(f'{self.round}/{what}', step)

    def _wait_for_answer(self, arrived: int, missing: int) -> None:
        start = time.monotonic()
        while arrived == self._count('done'):
            if time.monotonic() - start > self.patience:
                raise UserError(
                    f'{missing} candidates that other ranks took have no score after '
                    f'{self.patience:.0f} s: a rank has died or hangs; what was scored is on '
                    'disk, go on by --resume'
                )
            time.sleep(_POLL)

    def _next_message(self) -> tuple[dict, np.ndarray | None]:
        try:
            return unpack(self.store.get(f'{self.round}/tasks'))
        except RuntimeError as error:  # DistStoreError, DistNetworkError: closed, or too long
            raise UserError('rank 0 of the search has gone; see its log') from error

    def _wait_for_leavers(self) -> None:
        """The store ends with this process; let the others read it first."""
        start = time.monotonic()
        while self.store.add('left', 0) < self.size - 1 and time.monotonic() - start < 10:
            time.sleep(_POLL)


def _shared_store(patience: float) -> TCPStore:
    """A store on the machine of the first rank, whose address its launcher has told to all."""
    host, wait = os.environ.get('MASTER_ADDR', 'localhost'), timedelta(seconds=patience)
    port, store = [0], None
    if get_rank() == 0:
        store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=wait)
        port = [store.port]
    broadcast_object_list(port)
    if store is None:
        store = TCPStore(host, port[0], is_master=False, wait_for_workers=False, timeout=wait)
    return store
