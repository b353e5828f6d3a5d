"""Ranks that share the candidates of a search: each takes the next one when it is free."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from queue import Empty, SimpleQueue
from threading import Event, Thread

import numpy as np
from mmengine.dist import barrier, broadcast_object_list, get_rank, get_world_size
from torch.distributed import DistNetworkError, TCPStore

from ...errors import UserError
from ...search import Outcome, Task
from .messages import pack, pack_outcome, pack_tasks, unpack, unpack_outcome, unpack_tasks

_POLL = 0.002  # seconds; a wait inside the store cannot be interrupted, and warns when it is over
_OVER = 'over'
_ALL = 10**9  # tasks; more than any round has


def _forget(task: Task, outcome: Outcome) -> None:
    """Keep nothing."""


class Crew:
    """The first rank leads: it says what there is to do, takes part in it, and is told the rest.

    Tasks, outcomes and who takes what go through a key-value store of torch, not through
    collectives, so that the ranks need not keep step and any backend will do. As a context it
    sends the others home, whatever happens to the leader.

    Each rank has a thread beside its work. The leader's takes in the answers; another's counts
    on in the store as long as the rank lives, however long its task takes. The store lives in
    the leader's process, so that the others miss a leader that has ended as soon as they are
    through with their tasks; one whose machine is cut off, when the system gives the connection
    up (Linux: a quarter of an hour).

    Args:
        work: Evaluates a task.
        beat: Seconds between two signs of life.
        silence: Seconds without one after which the leader, while it waits, gives a rank up.
        grace: Seconds that the leader waits at most, after an error, for the others to hear of
            it. They stay for twice as long, so that it ends first and can say why: a launcher
            ends all as soon as one has ended.
    """

    def __init__(
        self,
        work: Callable[[Task], Outcome],
        beat: float = 2.0,
        silence: float = 60.0,
        grace: float = 5.0,
    ):
        self.work, self.beat, self.silence, self.grace = work, beat, silence, grace
        self.rank, self.size = get_rank(), get_world_size()
        self.store = _shared_store() if self.size > 1 else None
        self.aside = None if self.store is None else self.store.clone()  # the thread's
        barrier()  # none may end before all have joined: one that comes late would try for long
        self.thread: Thread | None = None
        self.stopped = Event()
        self.signs = dict.fromkeys(range(1, self.size), (0, 0))  # of life, and vain looks since
        self.round = 0
        self.result = None

    @property
    def leads(self) -> bool:
        """Whether this is the rank that leads."""
        return self.rank == 0

    def __enter__(self) -> 'Crew':
        if not self.leads:
            self._start(self._give_signs)
        return self

    def __exit__(self, kind, error, trace) -> None:
        self.stopped.set()
        if self.thread is not None:
            self.thread.join(self.beat)
        if self.store is not None and self.leads:
            self._count('taken', _ALL)
            said = None if error is None else f'{kind.__name__}: {error}'
            message = pack({_OVER: self.result, 'error': said})
            self.store.set(f'{self.round + 1}/tasks', message)
            if error is None or isinstance(error, Exception):  # a signal has reached all
                self._wait_for_leavers(10 if error is None else self.grace)

    def perform(
        self, tasks: list[Task], keep: Callable[[Task, Outcome], None] = _forget
    ) -> Iterator[tuple[Task, Outcome]]:
        """Outcomes of tasks as they come, in any order; for the leader.

        Args:
            tasks: Of one round: alike in precision and images.
            keep: Given each outcome once, before it is yielded: those of other ranks at once,
                even while this rank is at a task of its own. May run in another thread, but
                never twice at a time.

        Raises:
            UserError: If another rank failed, or gives no sign of life.
        """
        if self.store is None or len(tasks) < 2:
            for task in tasks:
                outcome = self.work(task)
                keep(task, outcome)
                yield task, outcome
            return
        self.round += 1
        self.store.set(f'{self.round}/tasks', pack_tasks(tasks))
        answers = SimpleQueue()
        self._start(self._take_in, tasks, keep, answers)
        for _ in tasks:
            if answers.empty() and (number := self._take(len(tasks))) is not None:
                self._tell(pack_outcome(number, self.work(tasks[number])))
            answer = self._next_of(answers)
            if isinstance(answer, Exception):
                raise answer
            yield answer

    def serve(self):
        """Take tasks until the leader needs no more; returns the result.

        Raises:
            UserError: If the leader failed, or has gone.
        """
        try:
            message, images = self._next_message()
            while _OVER not in message:
                tasks = unpack_tasks(message, images)
                while (number := self._take(len(tasks))) is not None:
                    self._work_and_tell(number, tasks[number])
                message, images = self._next_message()
        except DistNetworkError as error:
            raise UserError(
                'rank 0 of the search has gone, see its log; what was scored is on disk, '
                'continue with --resume'
            ) from error
        self._leave(message)
        if message['error'] is not None:
            raise UserError(f'rank 0: {message["error"]}')
        return message[_OVER]

    def _work_and_tell(self, number: int, task: Task) -> None:
        try:
            outcome = self.work(task)
        except Exception as error:
            with suppress(DistNetworkError):  # if the leader has gone, there is none to tell
                self._tell(pack(dict(error=f'rank {self.rank}: {type(error).__name__}: {error}')))
                message, _ = self._next_message()
                self._leave(message)
            raise
        self._tell(pack_outcome(number, outcome))

    def _leave(self, message: dict) -> None:
        self.stopped.set()  # no sign of life goes to a store that ends
        with suppress(DistNetworkError):  # it has ended already
            self.store.add('left', 1)
        if message['error'] is not None:
            time.sleep(2 * self.grace)

    def _start(self, target: Callable, *args) -> None:
        self.thread = Thread(target=target, args=args, daemon=True)
        self.thread.start()

    def _give_signs(self) -> None:
        with suppress(DistNetworkError):  # the rank itself will see that the leader has gone
            while not self.stopped.wait(self.beat):
                self.aside.add(f'signs/{self.rank}', 1)

    def _look_for_signs(self) -> None:
        """Looks are counted, not time, since a leader that was suspended must blame nobody."""
        for rank, (before, looks) in self.signs.items():
            signs = self.store.add(f'signs/{rank}', 0)
            self.signs[rank] = signs, 0 if signs != before else looks + 1
            if self.signs[rank][1] * self.beat > self.silence:
                raise UserError(
                    f'rank {rank} has given no sign of life for {self.silence:g} s: it was '
                    'killed, or its machine or network has failed; what was scored is on disk, '
                    'continue with --resume'
                )

    def _take_in(self, tasks: list[Task], keep: Callable, answers: SimpleQueue) -> None:
        try:
            for place in range(1, len(tasks) + 1):
                key = f'{self.round}/{place}'
                while not self.aside.check([key]):
                    if self.stopped.wait(_POLL):
                        return
                number, outcome = self._collect(key)
                keep(tasks[number], outcome)
                answers.put((tasks[number], outcome))
        except Exception as error:
            answers.put(error)

    def _collect(self, key: str) -> tuple[int, Outcome]:
        message, losses = unpack(self.aside.get(key))
        self.aside.delete_key(key)
        if 'error' in message:
            raise UserError(message['error'])
        return unpack_outcome(message, losses)

    def _next_of(self, answers: SimpleQueue) -> tuple[Task, Outcome] | Exception:
        while True:
            try:
                return answers.get(timeout=self.beat)
            except Empty:
                self._look_for_signs()

    def _tell(self, answer: bytes) -> None:
        place = self._count('told', 1)
        self.store.set(f'{self.round}/{place}', answer)

    def _take(self, count: int) -> int | None:
        """The next task that nobody has."""
        number = self._count('taken', 1) - 1
        return number if number < count else None

    def _count(self, what: str, step: int) -> int:
        return self.store.add(f'{self.round}/{what}', step)

    def _next_message(self) -> tuple[dict, np.ndarray | None]:
        self.round += 1
        key = f'{self.round}/tasks'
        while not self.store.check([key]):
            time.sleep(_POLL)
        return unpack(self.store.get(key))

    def _wait_for_leavers(self, seconds: float) -> None:
        """The store ends with this process; let the others read it first."""
        start = time.monotonic()
        while self.store.add('left', 0) < self.size - 1 and time.monotonic() - start < seconds:
            time.sleep(_POLL)


def _shared_store() -> TCPStore:
    """A store on the machine of the first rank, whose address its launcher has told to all."""
    host, wait = os.environ.get('MASTER_ADDR', 'localhost'), timedelta(minutes=5)
    port, store = [0], None
    if get_rank() == 0:
        store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=wait)
        port = [store.port]
    broadcast_object_list(port)
    if store is None:
        store = TCPStore(host, port[0], is_master=False, wait_for_workers=False, timeout=wait)
    return store
