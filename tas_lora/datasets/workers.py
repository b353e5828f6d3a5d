"""Loader workers that leave signals to the process they work for, and end with it all the same."""

import signal
import threading
from multiprocessing import active_children
from multiprocessing.util import Finalize
from time import monotonic

_LAST_CALL = 1.0  # seconds


def leave_signals_to_the_parent(worker_id: int) -> None:
    """A signal to all processes of a job must not take the images from the last iteration."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def end_workers_at_exit() -> None:
    """Have this process, at its exit, kill the workers that do not go.

    Those that stay between epochs (``persistent_workers``) are still there then. By itself,
    multiprocessing would ask them to go by the signal that they ignore, and wait for ever.
    """
    Finalize(None, _end_workers, exitpriority=0)  # before multiprocessing begins to wait


def _end_workers() -> None:
    workers = [process for process in active_children() if process.daemon]
    if workers and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler takes each end for a fault
    for worker in workers:
        worker.terminate()
    deadline = monotonic() + _LAST_CALL
    for worker in workers:
        worker.join(max(0.0, deadline - monotonic()))
        if worker.is_alive():
            worker.kill()
