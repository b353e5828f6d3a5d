"""Progress of a search: a bar on a terminal, log lines, and scalars."""

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TextIO

from rich.progress import BarColumn, Progress, TextColumn

from ...errors import STOPPED
from ...search import Outcome, Task

_WIDTH = 10  # of the bar: the text next to it fits in 80 columns


class SearchProgress:
    """Counts scored candidates and their time.

    Args:
        runner: Provides logger and visualizer.
        total: Expected number of candidates.
        images: Number of held-out images.
        share: Share of random subnets within the limits.
        name: Name of the score.
        interval: Candidates between two log lines.
    """

    def __init__(self, runner, total: int, images: int, share: float, name: str, interval: int):
        self.runner, self.total, self.images, self.share = runner, total, images, share
        self.name, self.interval = name, interval
        self.start = time.monotonic()
        self.seconds = 0.0  # spent on evaluations
        self.fresh = self.fresh_images = self.done = 0
        self.recalled = 0  # candidates already known at the start of this run
        columns = (BarColumn(_WIDTH), TextColumn('{task.fields[text]}'))
        self.bar = Progress(*columns, transient=True, disable=not sys.stdout.isatty())
        self.streams: list[tuple[logging.StreamHandler, TextIO]] = []
        self.place = self.bar.add_task('', total=total, text='')

    def __enter__(self) -> 'SearchProgress':
        before = sys.stdout
        self.bar.start()
        for handler in self.runner.logger.handlers:  # log lines appear above the bar
            is_ours = type(handler) is logging.StreamHandler and handler.stream is before
            if is_ours and sys.stdout is not before:
                self.streams.append((handler, handler.setStream(sys.stdout)))
        return self

    def __exit__(self, *_) -> None:
        while self.streams:
            handler, stream = self.streams.pop()
            handler.setStream(stream)
        self.bar.stop()

    def evaluated(self, task: Task, outcome: Outcome, seconds: float) -> None:
        """Count a new evaluation, and the time that the search waited for it."""
        self.seconds += seconds
        self.fresh += 1
        self.fresh_images += self.images if task.images is None else len(task.images)
        if outcome.is_empty:
            self.runner.logger.warning(f'Out of memory, left without a score: {task.subnet}')

    def note(self, line: dict, best: float) -> None:
        """Report a decided candidate; ``best`` is the best score so far."""
        self.done += 1
        self.recalled += self.fresh == 0
        text = self._text(best)
        self.bar.update(self.place, completed=self.done, text=text)
        scalars = {f'search/{name}': line[name] for name in (self.name, 'images') if name in line}
        self.runner.visualizer.add_scalars({**scalars, 'search/best': best}, step=self.done)
        if self.done % self.interval == 0:
            self.runner.logger.info(f'Search {text}')

    def cost(self) -> dict[str, float]:
        """Time and images since the start or, after a resume, since then."""
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
            f'eta {timedelta(seconds=round(left))}  {self.share:.0%} within limits'
        )


@contextmanager
def stopped_by_signals(runner, scored: Callable[[], int]) -> Iterator[None]:
    """At SIGTERM or SIGINT, exit with code 75 and a line that says how to continue.

    Args:
        runner: Provides the logger.
        scored: Returns the number of scored candidates.
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
