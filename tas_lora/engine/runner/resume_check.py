"""Whether a resumed training or search is the one that was begun."""

import json
from collections.abc import Iterator

from mmengine.dist import get_world_size

from ...errors import UserError

# Of these sections of a config every change matters, but for what only says where and how fast.
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
    'baseline',  # comes after the search
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
    'resume',
    'timeout',
    'val_begin',
    'val_interval',
    'with_cp',
}
_RECORD = 'run_record'  # in the message hub, hence in checkpoints
_SHOWN = 5


def check_same_run(runner, allow_changes: bool) -> None:
    """Compare the config of ``runner`` with that in the checkpoint it was resumed from.

    Args:
        runner: The runner, about to train.
        allow_changes: Log what has changed and continue.

    Raises:
        UserError: If model, data, optimizer, schedule or number of processes have changed.
    """
    record, hub = run_record(runner.cfg, _SECTIONS), runner.message_hub
    record['processes'] = str(get_world_size())
    record['iterations of an epoch'] = str(len(runner.train_dataloader))
    if runner._resume and _RECORD not in hub.runtime_info:
        runner.logger.warning(
            'The checkpoint does not say by which settings it was trained; they are not compared.'
        )
    before = json.loads(hub.runtime_info.get(_RECORD, 'null')) if runner._resume else None
    changes = differences(before or record, record)
    if changes and not allow_changes:
        raise UserError(
            f'this is not the run of the checkpoint: {changes}. A resumed run keeps '
            'its settings; start a new one from its weights (load_from without resume), or go on '
            'all the same by --cfg-options train_cfg.allow_changes=True'
        )
    if changes:
        runner.logger.warning(
            f'Changed since the checkpoint: {changes}. Rates and horizons that '
            "optimizer and schedules hold are the checkpoint's, not the config's."
        )
    hub.update_info(_RECORD, json.dumps(record))


def run_record(config: dict, sections: tuple[str, ...]) -> dict[str, str]:
    """What decides the course of a run, as text by dotted path, from sections of its config."""
    record = {}
    for section in sections:
        record |= dict(_leaves(config.get(section), section))
    return record


def differences(before: dict, now: dict) -> str:
    """How two records differ, in a line; empty if they do not."""
    texts = list(_differences(before, now))
    more = len(texts) - _SHOWN
    return '; '.join(texts[:_SHOWN]) + (f'; and {more} more' if more > 0 else '')


def _leaves(node, path: str) -> Iterator[tuple[str, str]]:
    """Values of nested dicts and lists."""
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
    """The same in every process, also for the classes of a config in Python's own style."""
    if callable(value):
        return f'{value.__module__}.{value.__qualname__}'
    return repr(list(value) if isinstance(value, tuple) else value)


def _differences(before: dict, now: dict) -> Iterator[str]:
    for path in [*before, *(path for path in now if path not in before)]:
        old, new = (record.get(path, 'nothing') for record in (before, now))
        if old != new:
            yield f'{path} was {old}, is {new} now'
