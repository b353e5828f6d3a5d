"""Check that a resumed training or search is the one that was started."""

import json
from collections.abc import Iterator

import torch
from mmengine.dist import get_world_size

from ...datasets.held_out_images import fingerprint
from ...errors import UserError

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
_SHOWN = 5


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
    before = json.loads(hub.runtime_info.get(_RECORD, 'null')) if runner._resume else None
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


def differences(before: dict, now: dict) -> str:
    """Describe how two records differ, in one line; empty if they do not."""
    texts = []
    for path in before | now:
        old, new = (record.get(path, 'nothing') for record in (before, now))
        if old != new:
            texts.append(f'{path} was {old}, is {new} now')
    more = len(texts) - _SHOWN
    return '; '.join(texts[:_SHOWN]) + (f'; and {more} more' if more > 0 else '')


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
