"""The identity of a search: by it a search is resumed, repeated, and told from another."""

import json
import os
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from ...atomic_files import write_atomic
from ...errors import UserError
from ...packaged import command
from ...provenance import read_json, versions, weights_sha256
from ..runner.resume_check import differences, run_record
from .result import HISTORY, JOURNAL

FILE = 'search.json'
_SECTIONS = (
    'model',
    'data_preprocessor',
    'custom_hooks',
    'val_cfg',
    'val_dataloader',
    'val_evaluator',
)
_OF_THE_RUN = ('work_dir', 'load_from', 'launcher', 'resume', 'experiment_name')


def search_identity(config: dict, checkpoint: str | None, images: str) -> dict:
    """All that decides what a search finds, and by what it was run.

    Args:
        config: The whole config.
        checkpoint: Path of the weights, if any were loaded.
        images: What tells the held-out images from others.
    """
    settings = run_record(config, _SECTIONS) | {'held-out images': images}
    if (config.get('val_cfg') or {}).get('measure') is not None:
        settings['measured on'] = _device()
    kept = {key: value for key, value in dict(config).items() if key not in _OF_THE_RUN}
    kept['val_cfg'] = {k: v for k, v in (kept.get('val_cfg') or {}).items() if k != 'resume'}
    return dict(
        checkpoint=checkpoint,
        checkpoint_sha256=weights_sha256(checkpoint) if checkpoint else None,
        command=command(),
        versions=versions(),
        settings=settings,
        config=json.loads(json.dumps(kept, default=_name)),
    )


def begin_search(folder: Path, identity: dict, resume: bool) -> dict:
    """Write the identity of a search beside its history, or compare it with the one there.

    Returns:
        That of the search's beginning.

    Raises:
        UserError: If that is of another search; the message says what differs.
    """
    path = folder / FILE
    if resume and not path.exists():
        _refuse_nameless(folder)
    if not (resume and path.exists()):
        write_atomic(path, json.dumps(identity, indent=2) + '\n')
        return identity
    before = _read(path)
    records = [
        dict(found['settings'], checkpoint_sha256=found['checkpoint_sha256'])
        for found in (before, identity)
    ]
    if changes := differences(*records):
        raise UserError(f'{path} is of another search: {changes}; search anew, without --resume')
    if changes := differences(before['versions'], identity['versions']):
        warnings.warn(f'The search is resumed with other versions: {changes}', stacklevel=2)
    # A random search may be added to one that is over.
    stored, now = (found['config']['val_cfg'] for found in (before, identity))
    stored |= {key: now[key] for key in ('baseline',) if key in now}
    write_atomic(path, json.dumps(before, indent=2) + '\n')
    return before


def read_identity(result: str | Path) -> dict:
    """What a search was, from ``best_subnet.json``, ``search.json``, or the folder of both.

    Raises:
        UserError: If there is none.
    """
    path = Path(result) / FILE if Path(result).is_dir() else Path(result)
    return _read(path)


def check_checkpoint(path: str, identity: dict) -> None:
    """Raise :class:`UserError` unless the file holds the weights of a search."""
    digest, expected = weights_sha256(path), identity['checkpoint_sha256']
    if digest != expected:
        raise UserError(
            f'{path} does not hold the weights of that search: its SHA-256 is {digest[:12]}..., '
            f'theirs {str(expected)[:12]}...; give the right file as CHECKPOINT'
        )


def refuse_test_set(config: dict) -> None:
    """Refuse a search on the images that its result is to be tested on.

    Raises:
        UserError: If the dataset of the search is marked as test set, or is the one of the test.
    """
    searched, tested = (
        list(_innermost((config.get(loader) or {}).get('dataset')))
        for loader in ('val_dataloader', 'test_dataloader')
    )
    marked = any(data.get('test_mode') or data.get('split') == 'test' for data in searched)
    sources = [_source(data) for data in tested]
    same = any(_source(data) in sources for data in searched)
    if marked or (same and not _is_held_out(config['val_dataloader'])):
        raise UserError(
            'is the test set; what is found on it cannot be tested on it. Search on '
            'tas_lora.HeldOutSplit(part="heldout") of the training set, or set '
            'val_cfg.search_on_test_set=True if you know what you do',
            'dataset',
        )


def _read(path: Path) -> dict:
    advice = '; tools/search.py writes best_subnet.json and search.json'
    content = read_json(path, 'search result', advice, dict)
    found = content.get('search', content)
    is_whole = (
        isinstance(found, dict)
        and 'checkpoint_sha256' in found
        and all(isinstance(found.get(key), dict) for key in ('config', 'settings', 'versions'))
        and isinstance(found['config'].get('val_cfg'), dict)
    )
    if not is_whole:
        raise UserError(
            f'{path} is not a search result: it needs checkpoint_sha256, settings, versions, and '
            f'config with val_cfg{advice}'
        )
    return found


def _device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f'{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads'


def _name(value) -> str:
    """A class or function of a config in Python's own style, by the name the registries find."""
    return f'{value.__module__}.{value.__qualname__}' if callable(value) else str(value)


def _innermost(dataset) -> Iterator[dict]:
    """The datasets inside of wrappers and concatenations."""
    if not isinstance(dataset, dict):
        return
    inside = [dataset.get('dataset'), *(dataset.get('datasets') or ())]
    if any(isinstance(part, dict) for part in inside):
        for part in inside:
            yield from _innermost(part)
    else:
        yield dict(dataset)


def _source(dataset: dict) -> dict:
    """Where the images of a dataset come from."""
    source = {key: dataset.get(key) for key in ('type', 'ann_file', 'data_prefix', 'split')}
    root = dataset.get('data_root')
    return source | dict(
        data_root=root and str(Path(root)), test_mode=bool(dataset.get('test_mode'))
    )


def _refuse_nameless(folder: Path) -> None:
    """Refuse history and journal without an identity: they could be of any search."""
    left = [name for name in (HISTORY, JOURNAL) if (folder / name).exists()]
    if left:
        raise UserError(
            f'{folder} has {left[0]}, but not {FILE}, which says what search that is of; search '
            'anew, without --resume'
        )


def _is_held_out(loader: dict) -> bool:
    dataset = loader.get('dataset') or {}
    return dataset.get('type') == 'tas_lora.HeldOutSplit' and dataset.get('part') == 'heldout'
