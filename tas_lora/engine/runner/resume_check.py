"""Check that a resumed training or search is the one that was started, and its checkpoint sane."""

import json
import os.path
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from mmengine.dist import get_world_size
from mmengine.hooks import CheckpointHook

from ...checks import natural
from ...datasets.held_out_images import fingerprint
from ...errors import UserError, blame, printable

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
_IMAGES = 'training images'
_BEST, _LAST = 'best_ckpt', 'last_ckpt'  # MMEngine's names there; a metric may follow the first
_SHOWN = 5


def make_resumable(checkpoint, runner, filename: str) -> None:
    """Check a checkpoint to resume from, and take out, in place, what MMEngine would act upon.

    MMEngine runs a config inside a checkpoint, and deletes the files that it names as the best.
    Here a name counts only for a file of that name among the runner's own checkpoints.

    Raises:
        UserError: If it holds only weights, or its counters are not numbers.
    """
    keys = set(checkpoint) if isinstance(checkpoint, dict) else set()
    if not {'meta', 'optimizer', 'message_hub'} <= keys:
        raise UserError(
            f'{filename} holds only weights; start from it with load_from, without resume'
        )
    with blame(f'{filename} is not a checkpoint of a training'):
        meta, known = checkpoint['meta'], checkpoint['message_hub']['runtime_info']
        meta.pop('config', None)  # `Runner.resume` would execute it as Python
        for name in ('epoch', 'iter'):
            natural(meta[name], f'{filename}: meta.{name}')
        kept = known.get('keep_ckpt_ids')  # MMEngine deletes what it makes of them
        if not isinstance(kept, (list, tuple)) or any(type(number) is not int for number in kept):
            known.pop('keep_ckpt_ids', None)
        for key in [key for key in known if key == _LAST or str(key).startswith(_BEST)]:
            _keep_if_own(known, key, runner)


def _keep_if_own(known: dict, key: str, runner) -> None:
    """Replace a path by a file of that name among the runner's checkpoints, or remove it."""
    name, folder = Path(str(known.pop(key))).name, _checkpoint_folder(runner)
    own, is_best = f'{folder}/{name}', key != _LAST
    # A remote folder is asked by the hook.
    is_there = '://' in folder or os.path.isfile(own)
    if is_there and (name.startswith('best_') or not is_best):
        known[key] = own
    elif is_best:  # a score without its file would keep out all others
        known.pop(key.replace(_BEST, 'best_score', 1), None)
        runner.logger.warning(
            f'The best checkpoint so far, {name}, is not in {folder}; the best from now on is kept.'
        )


def _checkpoint_folder(runner) -> str:
    """Where the runner's checkpoints go; MMEngine settles this only when training begins."""
    hooks = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]
    folder = hooks[0].out_dir if hooks else None
    if folder in (None, runner.work_dir):
        return str(runner.work_dir)
    return os.path.join(folder, os.path.basename(runner.work_dir.rstrip(os.path.sep)))


def check_same_run(runner, allow_changes: bool) -> None:
    """Compare the config of ``runner`` with that of the checkpoint it resumes from.

    Args:
        runner: The runner, about to train.
        allow_changes: Log the changes and continue.

    Raises:
        UserError: If model, data (number, labels and names of its images), optimizer, schedule or
            number of processes have changed.
    """
    record, hub = run_record(runner.cfg, _SECTIONS), runner.message_hub
    record['processes'] = str(get_world_size())
    record['iterations of an epoch'] = str(len(runner.train_dataloader))
    record[_IMAGES] = fingerprint(runner.train_dataloader.dataset)
    if runner._resume and _RECORD not in hub.runtime_info:
        runner.logger.warning(
            'The checkpoint does not say by which settings it was trained; they are not compared.'
        )
    before = None
    if runner._resume and _RECORD in hub.runtime_info:
        with blame('the settings in the checkpoint cannot be read'):
            before = dict(json.loads(hub.runtime_info[_RECORD]))
    if before and _IMAGES not in before:
        runner.logger.warning(
            'The checkpoint does not say by which images it was trained; they are not compared.'
        )
        before[_IMAGES] = record[_IMAGES]
    changes = differences(before or record, record)
    if changes and not allow_changes:
        raise UserError(
            f'this is not the run of the checkpoint: {changes}. A resumed run keeps its settings; '
            'start a new one from its weights (load_from without resume), or resume with these '
            'changes by --cfg-options train_cfg.allow_changes=True'
        )
    if changes:
        runner.logger.warning(
            f'Changed since the checkpoint: {changes}. The state of optimizer and schedules, '
            "with its rates and horizons, is the checkpoint's, not the config's."
        )
    hub.update_info(_RECORD, json.dumps(record))
    _compare_threads(runner)


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
