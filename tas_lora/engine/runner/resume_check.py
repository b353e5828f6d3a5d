"""Check that a resumed training or search is the one that was started, and its checkpoint sane."""

import json
import os.path
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from mmengine.dist import get_world_size
from mmengine.hooks import CheckpointHook

from ...checks import natural
from ...datasets.held_out_images import fingerprint
from ...errors import UserError, blame, printable
from ...models.safe_load import read_checkpoint
from .run_files import checkpoint_folder, is_of_same_run, is_remote

# Every change in these sections matters, except to keys that only say where and how fast.
_SECTIONS = (
    'model',
    'train_cfg',
    'train_dataloader',
    'optim_wrapper',
    'param_scheduler',
    'custom_hooks',
    'auto_scale_lr',
)
_HARMLESS = {
    'allow_changes',
    'baseline',  # runs after the search
    'compile_blocks',
    'data_root',
    'disable_subprocess_warning',
    'log_interval',
    'max_bad_images',
    'max_bad_steps',
    'memory_share',
    'multiprocessing_context',
    'num_workers',
    'persistent_workers',
    'pin_memory',
    'prefetch_factor',
    'ray',
    'resume',
    'timeout',
    'val_begin',
    'val_interval',
    'with_cp',
}
_RECORD, _THREADS = 'run_record', 'threads'  # in the message hub, so also in checkpoints
_IMAGES, _PROCESSES = 'training images', 'processes'
_ITERATIONS = 'iterations of an epoch'
# MMEngine's names there; a metric may follow the first.
_BEST, _LAST, _KEPT = 'best_ckpt', 'last_ckpt', 'keep_ckpt_ids'
_SHOWN = 5


def make_resumable(checkpoint, runner, filename: str) -> None:
    """Check a checkpoint to resume from, and take out, in place, what MMEngine would act upon.

    MMEngine runs a config inside a checkpoint, and deletes the files that it names as the best or
    by number. Here these count only if they are among the runner's own checkpoints, and of the run
    that the checkpoint is of.

    Raises:
        UserError: If it holds only weights, or its counters are not numbers.
    """
    with blame(f'{filename} is not a checkpoint of a training'):
        meta, known = _state(checkpoint, filename)
        meta.pop('config', None)  # `Runner.resume` would execute it as Python
        hook = checkpoint_hook(runner)
        folder = checkpoint_folder(runner.work_dir, hook and hook.out_dir)
        # Files at an address cannot be looked at, so that none of them is to be deleted.
        is_own = (
            (lambda name: False)
            if is_remote(folder)
            else lambda name: is_of_same_run(Path(folder, name), Path(filename), meta, known)
        )
        _keep_own_numbers(known, hook, is_own)
        for key in [key for key in known if key == _LAST or str(key).startswith(_BEST)]:
            _keep_if_own(known, key, folder, is_own, runner.logger)


def _state(checkpoint, filename: str) -> tuple[dict, dict]:
    """The ``meta`` and the ``runtime_info`` of a checkpoint to resume from, checked."""
    keys = set(checkpoint) if isinstance(checkpoint, dict) else set()
    if not {'meta', 'optimizer', 'message_hub'} <= keys:
        raise UserError(
            f'{filename} holds only weights; start from it with load_from, without resume'
        )
    meta, known = checkpoint['meta'], checkpoint['message_hub']['runtime_info']
    for name in ('epoch', 'iter'):
        natural(meta[name], f'{filename}: meta.{name}')
    return meta, known


def checkpoint_hook(runner) -> CheckpointHook | None:
    """The hook that writes the runner's checkpoints, None if there is none."""
    return next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)


def _keep_own_numbers(known: dict, hook, is_own: Callable[[str], bool]) -> None:
    """Leave only numbers of own files, since MMEngine deletes what it makes of them."""
    numbers = known.pop(_KEPT, None)
    is_list = isinstance(numbers, (list, tuple))
    if hook is None or not is_list or any(type(number) is not int for number in numbers):
        return
    if own := [number for number in numbers if is_own(hook.filename_tmpl.format(number))]:
        known[_KEPT] = own


def _keep_if_own(known: dict, key: str, folder: str, is_own, logger) -> None:
    """Replace a path by the own file of that name, or remove it."""
    name = Path(str(known.pop(key))).name
    is_best = key != _LAST
    if (name.startswith('best_') or not is_best) and is_own(name):
        known[key] = os.path.join(folder, name)
    elif is_best:  # a score without its file would keep out all others
        known.pop(key.replace(_BEST, 'best_score', 1), None)
        logger.warning(
            f'The best checkpoint so far, {name}, is not in {folder}, or of another run; the best '
            'from now on is kept.'
        )


def check_same_run(runner, allow_changes: bool) -> None:
    """Compare the config of ``runner`` with that of the checkpoint it resumes from.

    Args:
        runner: The runner, about to train.
        allow_changes: Log the changes and continue.

    Raises:
        UserError: If model, data (number, labels and names of its images), optimizer, schedule or
            number of processes have changed.
    """
    record, hub = _record_of(runner), runner.message_hub
    if runner._resume:
        _compare(_before(hub.runtime_info, runner.logger), record, allow_changes, runner.logger)
    hub.update_info(_RECORD, json.dumps(record))
    _compare_threads(runner)


def check_resumes(runner, filename: str, allow_changes: bool) -> None:
    """:func:`check_same_run` with a file, before training and without changing anything.

    The number of processes is not compared: a rehearsal has one.

    Args:
        runner: A runner whose training loop is built.
        filename: The checkpoint to resume from.
        allow_changes: Log the changes.

    Raises:
        UserError: As :func:`check_same_run`, or if ``filename`` is no checkpoint of a training.
    """
    checkpoint = read_checkpoint(filename)
    with blame(f'{filename} is not a checkpoint of a training'):
        _, known = _state(checkpoint, filename)
    before, record = _before(known, runner.logger), _record_of(runner)
    for found in (before, record):
        for key in (_PROCESSES, _ITERATIONS):
            found.pop(key, None)
    _compare(before, record, allow_changes, runner.logger)


def _record_of(runner) -> dict[str, str]:
    """What must be the same in a resumed run."""
    record = run_record(runner.cfg, _SECTIONS)
    record[_PROCESSES] = str(get_world_size())
    record[_ITERATIONS] = str(len(runner.train_dataloader))
    record[_IMAGES] = fingerprint(runner.train_dataloader.dataset)
    return record


def _before(known: Mapping, logger) -> dict[str, str]:
    """The record in a checkpoint; empty, with a line in the log, if it has none."""
    if _RECORD not in known:
        logger.warning(
            'The checkpoint does not say by which settings it was trained; they are not compared.'
        )
        return {}
    with blame('the settings in the checkpoint cannot be read'):
        before = dict(json.loads(known[_RECORD]))
    if before and _IMAGES not in before:
        logger.warning(
            'The checkpoint does not say by which images it was trained; they are not compared.'
        )
    return before


def _compare(before: dict, record: dict, allow_changes: bool, logger) -> None:
    """Refuse or log how a record differs from the one in a checkpoint, if there is any."""
    known = {_IMAGES: record[_IMAGES]} | before if before else record
    changes = differences(known, record)
    if changes and not allow_changes:
        raise UserError(
            f'this is not the run of the checkpoint: {changes}. A resumed run keeps its settings; '
            'start a new one from its weights (load_from without resume), or resume with these '
            'changes by --cfg-options train_cfg.allow_changes=True'
        )
    if changes:
        logger.warning(
            f'Changed since the checkpoint: {changes}. The state of optimizer and schedules, '
            "with its rates and horizons, is the checkpoint's, not the config's."
        )


def _compare_threads(runner) -> None:
    """Say that sums are added up in another order, if torch divides them among other threads."""
    threads, hub = torch.get_num_threads(), runner.message_hub
    before = hub.runtime_info.get(_THREADS, threads) if runner._resume else threads
    if before != threads:
        runner.logger.warning(
            f'torch has {threads} threads, {before} when the checkpoint was written: the last bits '
            f'may differ from those of an undisturbed run; OMP_NUM_THREADS={before} keeps them.'
        )
    hub.update_info(_THREADS, threads)


def run_record(config: dict, sections: tuple[str, ...]) -> dict[str, str]:
    """Settings in ``sections`` that affect the outcome of a run, as text by dotted path."""
    record = {}
    for section in sections:
        record |= dict(_leaves(config.get(section), section))
    return record


def recorded_run(checkpoint: object) -> dict[str, str]:
    """The record of the run that wrote a checkpoint; empty if it holds none that can be read."""
    for key in ('message_hub', 'runtime_info', _RECORD):
        checkpoint = checkpoint.get(key) if isinstance(checkpoint, Mapping) else None
    with suppress(TypeError, ValueError, RecursionError):
        record = json.loads(checkpoint)
        if isinstance(record, dict):
            return {key: value for key, value in record.items() if isinstance(value, str)}
    return {}


def differences(before: dict, now: dict) -> str:
    """Describe how two records differ, in one line; empty if they do not."""
    texts = []
    for path in before | now:
        old, new = (record.get(path, 'nothing') for record in (before, now))
        if old != new:
            texts.append(f'{path} was {old}, is {new} now')
    more = len(texts) - _SHOWN
    return printable('; '.join(texts[:_SHOWN]) + (f'; and {more} more' if more > 0 else ''))


def _leaves(node, path: str) -> Iterator[tuple[str, str]]:
    """Leaves of nested dicts and lists, with their paths."""
    if isinstance(node, dict):
        items = ((key, value) for key, value in node.items() if key not in _HARMLESS)
    elif isinstance(node, (list, tuple)) and any(isinstance(item, dict) for item in node):
        items = enumerate(node)
    else:
        yield path, _name(node)
        return
    for key, value in items:
        yield from _leaves(value, f'{path}.{key}')


def _name(value) -> str:
    """Text that is the same in every process, also for classes in a pure Python config."""
    if callable(value):
        return f'{value.__module__}.{value.__qualname__}'
    return repr(list(value) if isinstance(value, tuple) else value)
