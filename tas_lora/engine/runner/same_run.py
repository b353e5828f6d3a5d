"""Whether a resumed training is the one its checkpoint is of."""

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
    'compile_blocks',
    'data_root',
    'disable_subprocess_warning',
    'max_bad_images',
    'max_bad_steps',
    'multiprocessing_context',
    'num_workers',
    'persistent_workers',
    'pin_memory',
    'prefetch_factor',
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
        allow_changes: Log what has changed and go on.

    Raises:
        UserError: If model, data, optimizer, schedule or number of processes have changed.
    """
    record, hub = run_record(runner.cfg), runner.message_hub
    before = json.loads(hub.runtime_info.get(_RECORD, 'null')) or record
    differences = list(_differences(before, record))
    if differences and not allow_changes:
        raise UserError(
            f'this is not the run of the checkpoint: {_text(differences)}. A resumed run keeps '
            'its settings; start a new one from its weights (load_from without resume), or go on '
            'all the same by --cfg-options train_cfg.allow_changes=True'
        )
    if differences:
        runner.logger.warning(
            f'Changed since the checkpoint: {_text(differences)}. Rates and horizons that '
            "optimizer and schedules hold are the checkpoint's, not the config's."
        )
    hub.update_info(_RECORD, json.dumps(record))


def run_record(config: dict) -> dict[str, str]:
    """What decides the course of a training, as text by dotted path."""
    record = {}
    for section in _SECTIONS:
        record |= dict(_leaves(config.get(section), section))
    return record | dict(processes=str(get_world_size()))


def _leaves(node, path: str) -> Iterator[tuple[str, str]]:
    """Values of nested dicts and lists."""
    if isinstance(node, dict):
        items = ((key, value) for key, value in node.items() if key not in _HARMLESS)
    elif isinstance(node, (list, tuple)) and any(isinstance(item, dict) for item in node):
        items = enumerate(node)
    else:
        yield path, repr(list(node) if isinstance(node, tuple) else node)
        return
    for key, value in items:
        yield from _leaves(value, f'{path}.{key}')


def _differences(before: dict, now: dict) -> Iterator[str]:
    for path in [*before, *(path for path in now if path not in before)]:
        old, new = (record.get(path, 'nothing') for record in (before, now))
        if old != new:
            yield f'{path} is {old} in the checkpoint, {new} now'


def _text(differences: list[str]) -> str:
    more = len(differences) - _SHOWN
    return '; '.join(differences[:_SHOWN]) + (f'; and {more} more' if more > 0 else '')
