"""What a search shows while it runs: a bar on a terminal, lines in the log, scalars."""

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.progress import BarColumn, Progress, TextColumn

from ...errors import STOPPED
from ...search import Outcome, Task

_WIDTH = 10  # of the bar: the text beside it fits in 80 columns


class SearchProgress:
    """Counts what is scored and how long it takes; for the rank that leads.

    Args:
        runner: Has the logger and the visualizer.
        total: Candidates there will be.
        images: Held-out images.
        share: Of random subnets that are within the limits.
        name: Of the score.
        interval: Candidates between two log lines.
    """

    def __init__(self, runner, total: int, images: int, share: float, name: str, interval: int):
        self.runner, self.total, self.images, self.share = runner, total, images, share
        self.name, self.interval = name, interval
        self.start = time.monotonic()
        self.seconds = 0.0  # of evaluations
        self.fresh = self.fresh_images = self.done = 0
        self.recalled = 0  # candidates that were known when this run began
        columns = (BarColumn(_WIDTH), TextColumn('{task.fields[text]}'))
        self.bar = Progress(*columns, transient=True, disable=not sys.stdout.isatty())
        self.streams: list[tuple[logging.StreamHandler, TextIO]] = []
        self.place = self.bar.add_task('', total=total, text='')

    def __enter__(self) -> 'SearchProgress':
        before = sys.stdout
        self.bar.start()
        for handler in self.runner.logger.handlers:  # what is logged goes above the bar
            is_ours = type(handler) is logging.StreamHandler and handler.stream is before
            if is_ours and sys.stdout is not before:
                self.streams.append((handler, handler.setStream(sys.stdout)))
        return self

    def __exit__(self, *_) -> None:
        while self.streams:
            handler, stream = self.streams.pop()
            handler.setStream(stream)
        self.bar.stop()

    def timed(self, outcomes: Iterable[tuple[Task, Outcome]]) -> Iterator[tuple[Task, Outcome]]:
        """The same outcomes; the time until each counts as that of evaluation."""
        outcomes, start = iter(outcomes), time.monotonic()
        for task, outcome in outcomes:
            self.seconds += time.monotonic() - start
            self.fresh += 1
            self.fresh_images += self.images if task.images is None else len(task.images)
            yield task, outcome
            start = time.monotonic()
        self.seconds += time.monotonic() - start

    def note(self, line: dict, best: float) -> None:
        """A candidate is decided; ``best`` is the best score so far."""
        self.done += 1
        self.recalled += self.fresh == 0
        text = self._text(best)
        self.bar.update(self.place, completed=self.done, text=text)
        scalars = {f'search/{name}': line[name] for name in (self.name, 'images') if name in line}
        self.runner.visualizer.add_scalars({**scalars, 'search/best': best}, step=self.done)
        if self.done % self.interval == 0:
            self.runner.logger.info(f'Search {text}')

    def cost(self) -> dict[str, float]:
        """What it took since the start, or since the search was taken up again."""
        return dict(
            seconds=time.monotonic() - self.start,
            seconds_evaluating=self.seconds,
            images=self.fresh_images,
            images_per_second=self.fresh_images / max(self.seconds, 1e-9),
        )

    def _text(self, best: float) -> str:
        spent = time.monotonic() - self.start
        fresh = max(self.done - self.recalled, 1)
        left = spent / fresh * max(self.total - self.done, 0)
        return (
            f'{self.done}/{self.total}  best {best:.4f}  '
            f'{self.fresh_images / max(self.seconds, 1e-9):,.0f} images/s  '
            f'eta {_duration(left)}  {self.share:.0%} within limits'
        )


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f'{hours}:{rest // 60:02d}:{rest % 60:02d}' if hours else f'{rest // 60}:{rest % 60:02d}'


@contextmanager
def stopped_by_signals(runner, scored: Callable[[], int]) -> Iterator[None]:
    """SIGTERM and SIGINT end the search with a line on how to continue, and exit code 75.

    Args:
        runner: Has the logger.
        scored: How many candidates are scored.
    """
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if in_main else None
    try:
        yield
    except KeyboardInterrupt as stop:
        runner.logger.info(
            f'Stopped by a signal; {scored()} candidates are scored and on disk, continue with '
            f'--resume. Exit code {STOPPED}.'
        )
        raise SystemExit(STOPPED) from stop
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, before)
