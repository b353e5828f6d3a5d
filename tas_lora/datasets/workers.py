"""Loader workers that leave signals to their parent process, and still end with it."""

import signal
import threading
from multiprocessing import active_children
from multiprocessing.util import Finalize
from time import monotonic

_LAST_CALL = 1.0  # seconds


def leave_signals_to_the_parent(worker_id: int) -> None:
    """Ignore SIGTERM and SIGINT: sent to all processes, they must not stop the last iteration."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def end_workers_at_exit() -> None:
    """Have this process end its workers at exit, and kill those that remain.

    Workers with ``persistent_workers`` still exist then. Multiprocessing alone would send them
    the signal that they ignore, and wait forever.
    """
    Finalize(None, _end_workers, exitpriority=0)  # before multiprocessing starts to wait


def _end_workers() -> None:
    workers = [process for process in active_children() if process.daemon]
    if workers and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler treats each end as a fault
    for worker in workers:
        worker.terminate()
    deadline = monotonic() + _LAST_CALL
    for worker in workers:
        worker.join(max(0.0, deadline - monotonic()))
        if worker.is_alive():
            worker.kill()
