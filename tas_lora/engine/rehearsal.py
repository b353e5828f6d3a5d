"""A rehearsal of a run: one batch through all its parts, so that what will fail fails at once.

Training and validation run in their own loops, with all hooks, on loaders cut to one batch.
Nothing is written: work directory and logs go to a scratch folder, checkpoints nowhere.
"""

import copy
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric, DumpResults
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook, Hook, ProfilerHook
from mmengine.runner import BaseLoop, IterBasedTrainLoop
from mmengine.runner.loops import _InfiniteDataloaderIterator
from torch.compiler import set_stance
from torch.utils.data import DataLoader, Subset

from ..checks import of_part
from ..config import types_in
from ..datasets.held_out_images import HeldOutImages
from ..errors import UserError, blame
from ..search import Task
from ..search.scorer import check_score
from .hooks.similarity_hook import undisturbed
from .runner import SupernetRunner
from .search.candidate_evaluator import CandidateEvaluator, numbers_of

_NOWHERE = 'tas_lora_nowhere'
_FEW = 8  # images that tell the names of metrics


class Nowhere(LocalBackend):
    """Files that are not written."""

    def put(self, obj: bytes, filepath) -> None:
        """Drop a file."""


register_backend(_NOWHERE, Nowhere, force=True)


class RehearsalRunner(SupernetRunner):
    """A runner that neither describes the machine nor stores its config."""

    def _log_env(self, env_cfg: dict) -> None:
        """Skip what takes seconds."""

    def dump_config(self) -> None:
        """Store nothing."""


@contextmanager
def scratch_config(cfg: Config) -> Iterator[Config]:
    """A copy of a config whose run leaves nothing: a temporary work directory, no visualizer."""
    with TemporaryDirectory() as folder:
        cfg = copy.deepcopy(cfg)
        # MMEngine keeps loggers, visualizers and message hubs by the name of the experiment.
        cfg.work_dir, cfg.experiment_name, cfg.log_level = folder, Path(folder).name, 'WARNING'
        cfg.resume = False  # the state of a run may name files to delete
        if cfg.get('visualizer') is None:
            cfg.visualizer = dict(type='mmengine.Visualizer')
        if isinstance(cfg.visualizer, dict):
            cfg.visualizer.update(vis_backends=None, save_dir=folder, name=cfg.experiment_name)
        yield cfg


class _Conductor(Hook):
    """Ends a training after one batch and its validation, and follows where it is."""

    priority = 'HIGHEST'
    place = 'the start of training'

    def before_train(self, runner):
        # The only batch is the last one: with gradient accumulation, too, it takes a step.
        runner.optim_wrapper.initialize_count_status(runner.model, 0, 1)
        self.place = 'the first training step'

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        runner.train_loop.stop_training = True  # its epoch ends here, and validation comes

    def before_val(self, runner):
        self.place = 'the first validation'

    def after_val_epoch(self, runner, metrics=None):
        check_monitors(runner, metrics)

    def after_val(self, runner):
        self.place = 'the end of training'

    def before_test(self, runner):
        self.place = 'the first batch of the test'


def rehearse_training(runner: SupernetRunner) -> None:
    """Take one batch through training step, validation, metrics and hooks.

    The runner is of no use afterwards: its weights have moved.

    Args:
        runner: Prepared for 'train' and 'val', with a config of :func:`scratch_config`.

    Raises:
        UserError: Naming the part of the config that failed, and why.
    """
    loop = runner.train_loop
    loop.dataloader = _cut(loop.dataloader)
    loop.val_begin, loop.dynamic_milestones, loop.dynamic_intervals = 1, [0], [1]
    if isinstance(loop, IterBasedTrainLoop):
        loop.dataloader_iterator = _InfiniteDataloaderIterator(loop.dataloader)
    if runner.val_loop is not None:
        _shorten(runner.val_loop)
    with _conducted(runner):
        runner.train()


def rehearse_search(runner: SupernetRunner) -> None:
    """Evaluate the largest subnet on one batch of held-out images, with all metrics.

    Args:
        runner: Prepared for 'val', and for 'test' if the search ends with one; with a config of
            :func:`scratch_config`.

    Raises:
        UserError: As :func:`rehearse_training`.
    """
    with _conducted(runner):
        runner.call_hook('before_run')
        runner.load_or_resume()
        runner.call_hook('before_val')
        runner.call_hook('before_val_epoch')
        metrics = _try_candidate(runner)
        runner.call_hook('after_val_epoch', metrics=metrics)
        runner.call_hook('after_val')
        if runner._test_loop is not None and not isinstance(runner._test_loop, dict):
            _shorten(runner.test_loop)
            runner.test_loop.run()


def _try_candidate(runner: SupernetRunner) -> dict[str, float]:
    """Score the largest subnet on one batch, as a search will; return its metrics."""
    loop = runner.val_loop
    images = _some(loop.dataloader, loop.dataloader.batch_size)
    subset = Subset(loop.dataloader.dataset, images)
    loader = DataLoader(subset, batch_size=len(images), collate_fn=loop.dataloader.collate_fn)
    evaluate = CandidateEvaluator(runner, HeldOutImages(loader), loop.evaluator)
    subnet, precision = loop.settings.space.largest(), loop.settings.precision
    metrics = evaluate(Task(0, subnet, precision)).metrics
    check_score(metrics, loop.settings.score)
    if loop.settings.race is not None:
        evaluate(Task(1, subnet, precision, np.arange(len(images))))
    return metrics


def check_monitors(runner: SupernetRunner, metrics: dict) -> None:
    """Refuse names of metrics in ``save_best`` and ``monitor`` that validation does not give.

    Args:
        runner: Has hooks and, if it trains, schedulers.
        metrics: What validation gives.
    """
    given = numbers_of(metrics)
    for part, field, name in _monitored(runner):
        if name not in given:
            with of_part(type(part).__name__):
                raise UserError(
                    f'is {name!r}, but the numbers that validation gives are '
                    f'{", ".join(sorted(given)) or "none"}; choose one of them',
                    field,
                )


def check_monitors_early(runner: SupernetRunner) -> None:
    """:func:`check_monitors` before training, by a validation of a few images without hooks."""
    loop = runner.val_loop
    if loop is None or not any(_monitored(runner)):
        return
    loader, hooks = loop.dataloader, runner._hooks
    loop.dataloader, runner._hooks = _spread(loader, _FEW), []
    try:
        with undisturbed(), _without_dumps(loop.evaluator), set_stance('force_eager'):
            metrics = loop.run()
    except UserError:
        raise
    except Exception as error:  # so few images may be too few for a metric
        runner.logger.warning(
            f'A validation of {_FEW} images failed ({type(error).__name__}: {error}); '
            'see --check-only'
        )
        return
    finally:
        loop.dataloader, runner._hooks = loader, hooks
    check_monitors(runner, metrics)


def _monitored(runner) -> Iterator[tuple[object, str, str]]:
    """Hooks and schedulers that wait for a metric, with its field and name."""
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook) and hook.save_best is not None:
            yield from ((hook, 'save_best', n) for n in hook.key_indicators if n != 'auto')
        name = getattr(hook, 'monitor', None)  # EarlyStoppingHook, and hooks of other packages
        if isinstance(name, str):
            yield hook, 'monitor', name
    schedulers = runner.param_schedulers or []
    for group in schedulers.values() if isinstance(schedulers, dict) else [schedulers]:
        for scheduler in group:
            if getattr(scheduler, 'need_val_args', False):  # as MMEngine's hook asks
                yield scheduler, 'monitor', scheduler.monitor


@contextmanager
def _conducted(runner) -> Iterator[None]:
    """Run with hooks and metrics that write nothing; blame what fails on a part of the config."""
    runner._hooks = [hook for hook in runner.hooks if not isinstance(hook, ProfilerHook)]
    for hook in runner.hooks:
        if getattr(hook, 'out_dir', None) is not None:  # most hooks have none
            hook.out_dir = None
        if isinstance(hook, CheckpointHook):
            hook.file_client_args, hook.backend_args = None, dict(backend=_NOWHERE)
            hook.interval, hook.save_begin, hook.published_keys = 1, 0, None
    conductor = _Conductor()
    runner.register_hook(conductor)
    try:
        with set_stance('force_eager'), ExitStack() as stack:
            for loop in (runner._val_loop, runner._test_loop):
                if isinstance(loop, BaseLoop):
                    stack.enter_context(_without_dumps(loop.evaluator))
            yield
    except Exception as error:
        with of_part(_culprit(error, runner.cfg)), blame(f'{conductor.place} fails'):
            raise


def _culprit(error: Exception, cfg: Config) -> str:
    """Class of the innermost part of the config that an error came through; '' if none."""
    names, found = types_in(cfg), ''
    for frame, _ in traceback.walk_tb(error.__traceback__):
        owner = type(frame.f_locals.get('self')).__name__
        is_call = isinstance(frame.f_locals.get('self'), (Hook, BaseMetric, torch.nn.Module))
        found = owner if is_call and owner in names else found
    return found


def _shorten(loop) -> None:
    """Cut a validation or test to one batch, of images from all over the dataset."""
    loop.dataloader = _spread(loop.dataloader, loop.dataloader.batch_size or _FEW)


@contextmanager
def _without_dumps(evaluator) -> Iterator[None]:
    """Leave out metrics that write files."""
    metrics = evaluator.metrics
    evaluator.metrics = [m for m in metrics if not isinstance(m, DumpResults)]
    try:
        yield
    finally:
        evaluator.metrics = metrics


def _some(loader: DataLoader, count: int) -> list[int]:
    """Indices from all over a dataset: images are often sorted by class."""
    size = len(loader.dataset)
    return np.linspace(0, size - 1, min(count, size)).astype(int).tolist()


def _spread(loader: DataLoader, count: int) -> DataLoader:
    return _of(loader, _some(loader, count))


def _cut(loader: DataLoader) -> DataLoader:
    """The first batch of a loader."""
    return _of(loader, list(next(iter(loader.batch_sampler))))


def _of(loader: DataLoader, indices: Sequence[int]) -> DataLoader:
    """A loader of a single batch, read in this process."""
    return DataLoader(
        loader.dataset, batch_size=len(indices), sampler=indices, collate_fn=loader.collate_fn
    )
