"""Candidates evaluated by the workers of a Ray cluster."""

import os
import signal
import socket
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from math import ceil, floor, inf
from typing import Any

import torch

from ...checks import positive
from ...datasets.held_out_images import HeldOutImages, size_in_bytes
from ...errors import UserError
from ...search import Outcome, Task
from ...structures import Subnet
from ..model_access import supernet_of
from .worker import SearchWorker, to_arrays

RAY_OPTIONS = ('workers', 'address', 'gpus_per_worker', 'cpus_per_worker')
_DEATHS = 3  # workers that end at one task, or one after another at their start
_LOOK = 10.0  # seconds between two looks at the size of the cluster
_MOST = 8  # workers on a GPU
_SAY = 60.0  # seconds between two lines that say that no worker runs
_STORE = 0.8  # share of a machine's object store that the images may take


@dataclass
class _Worker:
    """A worker, and those that take its place after its end."""

    number: int
    actor: Any = None
    call: Any = None  # the pending one
    task: Task | None = None
    is_ready: bool = False
    about: dict = field(default_factory=dict)
    deaths: int = 0  # in a row, at the start
    since: float = 0.0  # when the first was ready
    tasks: int = 0
    seconds: float = 0.0  # spent on tasks

    def __str__(self) -> str:
        return f'worker {self.number}' + (f' on {self.about["host"]}' if self.about else '')


class RayExecutor:
    """An :class:`~tas_lora.search.Executor` on Ray, as a context.

    Each worker is an actor with a model of its own. Config, weights and decoded images go to the
    workers through Ray's object store, which holds them once per machine. When a worker ends,
    alone or with its machine, another takes its place, and its task goes to the next free one.
    Workers for which there is no room start as soon as a machine joins.

    Args:
        runner: The runner of the search, from whose config the workers build theirs.
        images: The held-out images.
        workers: Number of workers. None: as many as there is room for, also later.
        address: Of a running cluster, 'auto' or 'HOST:PORT'. None starts Ray on this machine for
            the duration of the search.
        gpus_per_worker: GPUs of a worker; with a fraction, several share one. 'auto' takes the
            fraction that the memory of the largest subnet allows. Default: 1 if there are GPUs.
        cpus_per_worker: Cores of a worker, and its threads unless OMP_NUM_THREADS is set. Default:
            an equal share of this machine's, or 1 on a running cluster.

    Raises:
        UserError: If Ray is not installed, nobody listens at the address, or there are fewer GPUs
            than asked for.
    """

    def __init__(
        self,
        runner,
        images: HeldOutImages,
        workers: int | None = None,
        address: str | None = None,
        gpus_per_worker: float | str | None = None,
        cpus_per_worker: float | None = None,
    ):
        try:
            import ray
        except ImportError as error:
            raise UserError("needs Ray: pip install 'tas-lora[ray]'", '') from error
        self.ray, self.runner, self.images, self.address = ray, runner, images, address
        self.wanted = None if workers is None else positive(workers, 'workers', int)
        self.gpus = gpus_per_worker
        if gpus_per_worker not in (None, 'auto', 0):
            positive(gpus_per_worker, 'gpus_per_worker', float)
            if gpus_per_worker > 1 and gpus_per_worker % 1:
                raise UserError(
                    f"must be a fraction up to 1, a whole number or 'auto', got {gpus_per_worker}",
                    'gpus_per_worker',
                )
        self.cpus = (
            None if cpus_per_worker is None else positive(cpus_per_worker, 'cpus_per_worker', float)
        )
        if address is None:
            self._divide_machine()
        elif address != 'auto':
            _check_listening(address)
        self.workers: list[_Worker] = []
        self.waiting, self.done = deque[Task](), deque[tuple[Task, Outcome]]()
        self.deaths = Counter[int]()  # workers that ended at a task, by its number
        self.retries = 0
        self.measurer: _Worker | None = None
        self.measured_on: str | None = None
        self.looked, self.said = 0.0, time.monotonic()

    def __enter__(self) -> 'RayExecutor':
        samples = self.images.decoded()  # before Ray has threads: a loader's workers are forks
        self.was_running = self.ray.is_initialized()
        try:
            if not self.was_running:
                self._connect()
            self._send(samples)
            self._settle_shares()
            for _ in range(self._room() if self.wanted is None else self.wanted):
                self._add()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _send(self, samples: list[dict] | None) -> None:
        """Put what each worker needs into the object store."""
        if samples is not None and not self._fits(size_in_bytes(samples)):
            samples = None
        config = self.runner.cfg.to_dict()
        changes = dict(ray=None, resume=False, measured=None, memory_share=0.0)
        config |= dict(val_cfg=config['val_cfg'] | changes, load_from=None, launcher='none')
        parts = (
            config | dict(cwd=os.getcwd()),
            to_arrays(supernet_of(self.runner).state_dict()),
            self.images.fingerprint(),
            samples and [to_arrays(sample) for sample in samples],
        )
        self.arguments = [self.ray.put(part) for part in parts]

    def __exit__(self, *_) -> None:
        idle = [worker for worker in self.workers if worker.is_ready and worker.call is None]
        if idle:
            self.ray.wait([worker.actor.stop.remote() for worker in idle], timeout=5)
        for worker in self.workers:
            self.ray.kill(worker.actor)
        if not self.was_running:
            self.ray.shutdown()

    def submit(self, task: Task) -> None:
        """Put a task at the end of the queue."""
        self.waiting.append(task)
        self._hand_out()

    def collect(self) -> tuple[Task, Outcome]:
        """Wait for the next outcome.

        Raises:
            UserError: If a task fails, other than by the end of its worker; if no worker starts.
        """
        while not self.done:
            self._receive(timeout=_LOOK)
            self._hand_out()  # before the search looks at what has come
        return self.done.popleft()

    def measure(self, subnet: Subnet) -> dict[str, float]:
        """Measured costs of a subnet, always by the same worker while the others wait.

        All are infinite for a subnet that ends the worker again and again.
        """
        for _ in range(_DEATHS):
            worker = self._measurer()
            try:
                return self.ray.get(worker.actor.measure.remote(subnet))
            except self.ray.exceptions.RayTaskError as error:
                raise _as_user_error(worker, error) from error
            except self.ray.exceptions.RayError as error:
                self._replace(worker, error)
        return dict.fromkeys(('latency', 'latency_spread', 'memory'), inf)

    def device(self) -> str:
        """The device on which :meth:`measure` measures."""
        return self._measurer().about['device']

    def usage(self) -> dict:
        """Number of workers and retries; host, tasks and busy share of each worker."""
        now = time.monotonic()
        shares = [
            dict(
                worker=worker.number,
                host=worker.about.get('host', 'never started'),
                tasks=worker.tasks,
                busy=worker.seconds / (now - worker.since) if worker.since else 0.0,
            )
            for worker in self.workers
        ]
        return dict(processes=len(self.workers), retries=self.retries, workers=shares)

    def _divide_machine(self) -> None:
        gpus = torch.cuda.device_count()
        cores = getattr(os, 'process_cpu_count', os.cpu_count)() or 1
        if self.gpus == 'auto' and not gpus:
            raise UserError("is 'auto', but this machine has no GPU", 'gpus_per_worker')
        if self.gpus is None:
            self.gpus = min(gpus, 1)
        if self.wanted is None and self.gpus == 0:
            self.wanted = max(floor(cores / (self.cpus or 1)), 1)
        if self.gpus not in (0, 'auto') and (self.wanted or 1) > _workers_on(gpus, self.gpus):
            raise UserError(
                f'is {self.wanted or 1}: with {self.gpus:g} GPUs each, this machine has room for '
                f'{_workers_on(gpus, self.gpus)}, for it has {gpus}; lower it, or gpus_per_worker',
                'workers',
            )
        if self.cpus is None:
            self.cpus = max(cores // (self.wanted or max(gpus, 1)), 1)

    def _connect(self) -> None:
        before = signal.getsignal(signal.SIGTERM)
        os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')  # it would report to its makers
        options = dict(log_to_driver=False, logging_level='ERROR', configure_logging=False)
        if self.address is None:
            most = _MOST * torch.cuda.device_count() if self.wanted is None else self.wanted
            cores = ceil(most * self.cpus)
            options |= dict(address='local', num_cpus=cores, include_dashboard=False)
        else:
            options |= dict(address=self.address)
        try:
            self.ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            what = 'does not start' if self.address is None else f'is not at {self.address!r}'
            raise UserError(f'Ray {what}: {" ".join(str(error).split())[:300]}') from error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # in place of Ray's

    def _fits(self, size: int) -> bool:
        stores = [node['Resources'].get('object_store_memory', 0) for node in self._nodes()]
        fits = size < _STORE * min(stores)
        if not fits:
            self.runner.logger.warning(
                f'The decoded images take {size / 2**20:,.0f} MiB, more than {_STORE:.0%} of the '
                'object store of a machine: each worker decodes them again for every subnet.'
            )
        return fits

    def _nodes(self) -> list[dict]:
        return [node for node in self.ray.nodes() if node['Alive']]

    def _settle_shares(self) -> None:
        gpus = self.ray.cluster_resources().get('GPU', 0)
        if self.gpus is None:
            self.gpus = min(gpus, 1)
        if self.gpus == 'auto' and not gpus:
            raise UserError("val_cfg.ray.gpus_per_worker is 'auto', but the cluster has no GPU")
        if self.gpus == 'auto':
            self.gpus = 1
            probe = self._add()
            self._wait_for(probe)
            try:
                peak, total = self.ray.get(probe.actor.peak_memory.remote())
            except self.ray.exceptions.RayError as error:
                raise _as_user_error(probe, error) from error
            self.gpus = 1 / workers_per_gpu(peak, total)
            self.runner.logger.info(f'{1 / self.gpus:.0f} workers share a GPU.')
            self.ray.kill(self.workers.pop().actor)
        self.cpus = self.cpus or 1
        room = self._room()
        if self.wanted is None and not room:
            raise UserError(
                f'a worker needs {self.gpus:g} GPUs and {self.cpus:g} cores, which no machine of '
                'the cluster has; lower val_cfg.ray.gpus_per_worker or cpus_per_worker, or give '
                'workers to wait for a machine'
            )
        if self.wanted is not None and room < self.wanted:
            self.runner.logger.warning(
                f'There is room for {room} of {self.wanted} workers; the others wait for it.'
            )

    def _room(self) -> int:
        """Number of workers that the cluster can hold."""
        return sum(
            min(
                _workers_on(node['Resources'].get(name, 0), share)
                for name, share in (('CPU', self.cpus), ('GPU', self.gpus))
                if share
            )
            for node in self._nodes()
        )

    def _add(self) -> _Worker:
        worker = _Worker(len(self.workers))
        self.workers.append(worker)
        self._start(worker)
        return worker

    def _start(self, worker: _Worker) -> None:
        actor = self.ray.remote(num_cpus=self.cpus, num_gpus=self.gpus)(SearchWorker)
        worker.actor, worker.task, worker.is_ready = actor.remote(), None, False
        worker.call = worker.actor.start.remote(*self.arguments, self.gpus)

    def _hand_out(self) -> None:
        if self.wanted is None and time.monotonic() - self.looked > _LOOK:
            self.looked = time.monotonic()
            for _ in range(self._room() - len(self.workers)):
                self._add()
        for worker in self.workers:
            if worker.is_ready and worker.call is None and self.waiting:
                worker.task = self.waiting.popleft()
                worker.call = worker.actor.evaluate.remote(worker.task)

    def _receive(self, timeout: float | None = None) -> None:
        """Take in what the first call to end brings."""
        calls = {worker.call: worker for worker in self.workers if worker.call is not None}
        if not calls:
            raise UserError('all workers were refused; see the log')
        ended = self.ray.wait(list(calls), timeout=timeout)[0]
        if not ended and not any(worker.is_ready for worker in self.workers):
            self._say_waiting()
        for call in ended:
            worker = calls[call]
            try:
                found = self.ray.get(call)
            except self.ray.exceptions.RayTaskError as error:
                self._refuse(worker, error)
            except self.ray.exceptions.RayError as error:
                self._replace(worker, error)
            else:
                self._accept(worker, found)

    def _say_waiting(self) -> None:
        if time.monotonic() - self.said > _SAY:
            self.said = time.monotonic()
            self.runner.logger.info('No worker runs yet: it is starting, or there is no room.')

    def _accept(self, worker: _Worker, found: dict | Outcome) -> None:
        worker.call = None
        if worker.is_ready:
            worker.tasks += 1
            worker.seconds += found.seconds
            self.done.append((worker.task, found))
            worker.task = None
            return
        worker.about, worker.is_ready, worker.deaths = found, True, 0
        worker.since = worker.since or time.monotonic()

    def _refuse(self, worker: _Worker, error: Exception) -> None:
        """An error in a task ends the search; one at the start only puts its worker aside.

        Its actor stays, so that no other worker starts on that machine in its place.
        """
        reason = _as_user_error(worker, error)
        if worker.is_ready or len(self.workers) == 1:
            raise reason from error
        worker.call = None
        self.runner.logger.warning(f'{reason}. It gets no tasks.')

    def _replace(self, worker: _Worker, error: Exception) -> None:
        """After the end of a worker, start another and give its task to the next free one."""
        reason, task = _reason(error), worker.task
        if task is not None:
            self.deaths[task.number] += self._is_to_blame(worker, error)
            if self.deaths[task.number] < _DEATHS:
                self.retries += 1
                self.waiting.appendleft(task)
                advice = f'its candidate is evaluated again (retry {self.retries})'
            else:
                self.done.append((task, Outcome()))
                advice = f'its candidate, the end of {_DEATHS} workers, is left without a score'
        else:
            worker.deaths += 1
            if worker.deaths == _DEATHS:
                self._give_up(worker, reason)
                return
            advice = 'another is started'
        self.runner.logger.warning(f'{worker} has ended; {advice}. Ray says: {reason}')
        self.ray.kill(worker.actor)  # it may be alive and out of reach
        self._start(worker)

    def _give_up(self, worker: _Worker, reason: str) -> None:
        said = f'{worker} has ended {_DEATHS} times at its start: {reason}'
        if not any(other.is_ready for other in self.workers):
            raise UserError(said)
        worker.call = None
        self.runner.logger.warning(f'{said}. The search continues without it.')

    def _is_to_blame(self, worker: _Worker, error: Exception) -> bool:
        """Whether a task may have ended its worker: not if the machine has gone, too."""
        nodes = [node['NodeID'] for node in self._nodes()]
        is_out_of_reach = isinstance(error, self.ray.exceptions.ActorUnavailableError)
        return worker.about['node'] in nodes and not is_out_of_reach

    def _measurer(self) -> _Worker:
        """The worker that measures: the first that is ready, as long as it can be replaced."""
        while self.measurer is None or not self.measurer.is_ready:
            if self.measurer is None or self.measurer.call is None:
                self.measurer = next((w for w in self.workers if w.is_ready), None)
            if self.measurer is None or not self.measurer.is_ready:
                self._receive()
        device = self.measurer.about['device']
        if self.measured_on not in (None, device):
            self.runner.logger.warning(
                f'{self.measurer} measures on {device} now, before on {self.measured_on}: the '
                'latencies of the two cannot be compared.'
            )
        self.measured_on = device
        return self.measurer

    def _wait_for(self, worker: _Worker) -> None:
        while not worker.is_ready:
            self._receive()


def _workers_on(resource: float, share: float) -> int:
    """How many workers fit; a fraction of a GPU never spans two."""
    return floor(resource) * floor(1 / share + 1e-6) if share < 1 else floor(resource / share)


def workers_per_gpu(needed: int, total: int, most: int = _MOST) -> int:
    """How many workers fit on a GPU of ``total`` bytes, each with a peak of ``needed`` bytes.

    Each also gets 0.6 GB for its CUDA context, and a tenth of the memory stays free.
    """
    return max(min(floor(0.9 * total / (needed + 0.6e9)), most), 1)


def _check_listening(address: str) -> None:
    """Ray itself tries for minutes."""
    host, _, port = address.removeprefix('ray://').rpartition(':')
    try:
        socket.create_connection((host.strip('[]'), int(port)), timeout=10).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(
            f'is {address!r}, where no Ray cluster listens ({error}); give HOST:PORT of its head, '
            "'auto' on one of its machines, or leave it out to use this machine alone",
            'address',
        ) from error


def _as_user_error(worker: _Worker, error: Exception) -> UserError:
    cause = getattr(error, 'cause', None) or error
    kind = '' if isinstance(cause, UserError) else f'{type(cause).__name__}: '
    return UserError(f'{worker}: {kind}{" ".join(str(cause).split())[:600]}')


def _reason(error: Exception) -> str:
    """The sentence of Ray's message that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
