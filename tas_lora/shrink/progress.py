"""Progress and time left over all stages."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

from mmengine.hooks import Hook
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn

BACKWARD = 2  # forwards that a backward costs


class TimeLeft(ProgressColumn):
    """What the meter says; empty for the phases of a stage."""

    def render(self, task: Task) -> str:
        """The text of a task."""
        return task.fields.get('left', '')


class Meter:
    """One bar over all stages.

    Work is counted in images that pass forward through the original. What an image costs in seconds
    follows from the work so far.

    Args:
        console: Where the bar is shown; only on a terminal.
        work: Images by stage.
        seconds: What the stages that are done have taken.
    """

    def __init__(self, console: Console, work: Mapping[str, float], seconds: Mapping[str, float]):
        self.console, self.work = console, dict(work)
        self.finished = sum(work[name] for name in seconds if name in work)
        self.spent, self.now, self.start = sum(seconds.values()), 0.0, time.monotonic()
        self.total = sum(work.values())
        columns = TextColumn('{task.description}'), BarColumn(30), TimeLeft()
        self.bar = Progress(
            *columns,
            console=console,
            transient=True,
            redirect_stdout=False,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task('', total=self.total, left='')

    @contextmanager
    def stage(self, name: str, number: int) -> Iterator[None]:
        """Count the work of a stage."""
        self.now, self.start = 0.0, time.monotonic()
        self.bar.update(self.task, description=f'{number}/{len(self.work)} {name}')
        self._show(name)
        yield
        self.finished += self.work[name]
        self.spent += time.monotonic() - self.start
        self.now, self.start = 0.0, time.monotonic()
        self._show(name)

    def plan(self, name: str, images: float) -> None:
        """Correct the work of a stage that has not ended."""
        self.work[name] = images
        self.total = sum(self.work.values())
        self.bar.update(self.task, total=self.total)

    def skip(self, name: str, images: float) -> None:
        """Take some images out of the plan of a stage."""
        self.plan(name, max(0.0, self.work[name] - images))

    def advance(self, name: str, images: float) -> None:
        """Count some images; never more than were planned for the stage."""
        self.now = min(self.now + images, self.work[name])
        self._show(name)

    def left(self) -> float | None:
        """Seconds that are left; None until some work is done."""
        done = self.finished + self.now
        if not done:
            return None
        return (self.spent + time.monotonic() - self.start) / done * (self.total - done)

    def _show(self, name: str) -> None:
        left = self.left()
        text = '' if left is None else f'{timedelta(seconds=round(left))} left'
        self.bar.update(self.task, completed=self.finished + self.now, left=text)


class Count(Hook):
    """Tells a meter of each batch.

    Args:
        meter: The meter.
        stage: Name of the stage.
        per_image: Work of an image: as much for training as a teacher, a forward and a backward.
    """

    def __init__(self, meter: Meter, stage: str, per_image: float = 1.0):
        self.meter, self.stage, self.per_image = meter, stage, per_image

    def before_train(self, runner):
        """Leave out of the plan what an earlier start has done."""
        images = runner.iter * runner.cfg.train_dataloader.batch_size
        self.meter.skip(self.stage, self.per_image * images)

    def _after_iter(self, runner, batch_idx, data_batch=None, outputs=None, mode='train'):
        share = self.per_image if mode == 'train' else 1.0
        self.meter.advance(self.stage, share * len((data_batch or {}).get('inputs', ())))
