"""How a tool is stopped: by signals, and by the end of the launcher that started it."""

import ctypes
import os
import signal
import sys
import threading

from .errors import STOPPED
from .ranks import is_first_rank

SIGNALS = (signal.SIGTERM, signal.SIGINT)
LINE = f'Stopped by a signal. Exit code {STOPPED}: start it again, a training with --resume.\n'
_PR_SET_PDEATHSIG = 1


def say_stopped() -> None:
    """Say once, not on every rank, that a signal has ended this process."""
    if is_first_rank():
        os.write(2, LINE.encode())


def leave(number, frame) -> None:
    """End the process at once; a handler for the time when there is nothing to save."""
    say_stopped()
    os._exit(STOPPED)


def catch_signals(handler) -> dict:
    """Handle signals from now on, unless they are ignored; returns the handlers before."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    before = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: old for number, old in before.items() if old is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, handler)
    return before


def end_with_launcher() -> None:
    """Have this process told to stop, by SIGTERM, when its torchrun has gone (Linux only).

    After a SIGKILL of torchrun alone it would continue, and meet the run that replaces it.
    """
    if sys.platform == 'linux' and 'TORCHELASTIC_RUN_ID' in os.environ:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
