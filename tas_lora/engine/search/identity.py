"""The identity of a search, needed to resume it, repeat it, and tell it from others."""

import json
import os
import platform
import warnings
from pathlib import Path

import torch

from ...atomic_files import write_atomic
from ...datasets.sources import sources
from ...errors import UserError
from ...packaged import command
from ...provenance import read_json, versions, weights_sha256
from ..runner.resume_check import differences, run_record
from .result import HISTORY, JOURNAL

FILE = 'search.json'
_DEVICE = 'measured on'  # name of a setting
SECTIONS = (
    'model',
    'data_preprocessor',
    'custom_hooks',
    'val_cfg',
    'val_dataloader',
    'val_evaluator',
)
_OF_THE_RUN = ('work_dir', 'load_from', 'launcher', 'resume', 'experiment_name')


def device_name() -> str:
    """The GPU of this process or, without one, the processor with its cores and threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f'{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads'


def search_identity(
    config: dict, checkpoint: str | None, images: str, measured_on: str | None = None
) -> dict:
    """Everything that determines the result of a search, along with its command line.

    Args:
        config: The complete config.
        checkpoint: Path of the weights, if any were loaded.
        images: Fingerprint of the held-out images.
        measured_on: Device on which latency and memory are measured, if they are.
    """
    settings = run_record(config, SECTIONS) | {'held-out images': images}
    if measured_on is not None:
        settings[_DEVICE] = measured_on
    kept = {key: value for key, value in dict(config).items() if key not in _OF_THE_RUN}
    loop = kept.get('val_cfg') or {}
    kept['val_cfg'] = {k: v for k, v in loop.items() if k not in ('resume', 'ray')}
    return dict(
        checkpoint=checkpoint,
        checkpoint_sha256=weights_sha256(checkpoint) if checkpoint else None,
        command=command(),
        versions=versions(),
        settings=settings,
        config=json.loads(json.dumps(kept, default=_text)),
    )


def begin_search(folder: Path, identity: dict, resume: bool) -> dict:
    """Write the identity of a search next to its history, or compare it with the one there.

    Returns:
        The identity at the first start of the search.

    Raises:
        UserError: If that is another search, with what differs; or if there is a history or
            journal without an identity, which could be from any search.
    """
    path = folder / FILE
    if not (resume and path.exists()):
        if resume:
            _check_nothing_left(folder)
        write_atomic(path, json.dumps(identity, indent=2) + '\n')
        return identity
    before = _same_search(path, identity)
    if changes := differences(before['versions'], identity['versions']):
        warnings.warn(f'The search is resumed with other versions: {changes}', stacklevel=2)
    now = identity['config']['val_cfg']
    if 'baseline' in now:  # a random search may be added to a finished search
        before['config']['val_cfg']['baseline'] = now['baseline']
    write_atomic(path, json.dumps(before, indent=2) + '\n')
    return before


def check_resumes_search(runner, folder: Path) -> None:
    """The comparison of :func:`begin_search` before a search that resumes; it changes nothing.

    The device of measurements is not compared: workers would have to start to name it.

    Args:
        runner: A runner with a search loop, built, and the path of its weights.
        folder: The work directory.

    Raises:
        UserError: As :func:`begin_search`.
    """
    if not runner.val_loop.settings.resume:
        return
    if not (folder / FILE).exists():
        _check_nothing_left(folder)
        return
    images = runner.val_loop.images.fingerprint()
    identity = search_identity(runner.cfg, runner._load_from, images)
    _same_search(folder / FILE, identity, ignored=_DEVICE)


def _check_nothing_left(folder: Path) -> None:
    """Refuse a history or journal without an identity."""
    if left := [name for name in (HISTORY, JOURNAL) if (folder / name).exists()]:
        raise UserError(
            f'{folder} has {left[0]}, but not {FILE}, which says what search it is from; start '
            'a new search, without --resume'
        )


def _same_search(path: Path, identity: dict, ignored: str = '') -> dict:
    """The identity in a file, which must be that of the same search."""
    before = read_identity(path)
    records = [
        dict(found['settings'], checkpoint_sha256=found['checkpoint_sha256'])
        for found in (before, identity)
    ]
    for record in records:
        record.pop(ignored, None)
    if changes := differences(*records):
        raise UserError(
            f'{path} is of another search: {changes}; start a new one, without --resume'
        )
    return before


def read_identity(result: str | Path) -> dict:
    """Read a search's identity from ``best_subnet.json``, ``search.json``, or their folder.

    Raises:
        UserError: If there is none.
    """
    path = Path(result) / FILE if Path(result).is_dir() else Path(result)
    advice = '; tools/search.py writes best_subnet.json and search.json'
    content = read_json(path, 'search result', advice, dict)
    found = content.get('search', content)
    is_whole = (
        isinstance(found, dict)
        and 'checkpoint_sha256' in found
        and isinstance(found.get('checkpoint'), (str, type(None)))
        and all(isinstance(found.get(key), dict) for key in ('config', 'settings', 'versions'))
        and isinstance(found['config'].get('val_cfg'), dict)
    )
    if not is_whole:
        raise UserError(
            f'{path} is not a search result: it needs checkpoint_sha256, settings, versions, and '
            f'config with val_cfg{advice}'
        )
    return found


def check_checkpoint(path: str, identity: dict) -> None:
    """Raise :class:`UserError` unless the file holds the weights of that search."""
    digest, expected = weights_sha256(path), identity['checkpoint_sha256']
    if digest != expected:
        raise UserError(
            f'{path} does not hold the weights of that search: its SHA-256 is {digest[:12]}..., '
            f'theirs {str(expected)[:12]}...; give the right file as CHECKPOINT'
        )


def check_settings(config: dict, identity: dict) -> None:
    """Raise :class:`UserError`, with what differs, unless ``config`` is that of the search."""
    now = run_record(config, SECTIONS)
    known = {k: v for k, v in identity['settings'].items() if k.split('.')[0] in SECTIONS}
    for record in (known, now):
        record.pop('val_cfg.measured', None)  # a replay itself takes the measurements of the first
    if changes := differences(known, now):
        raise UserError(
            f'the config is not that of the search: {changes}; give the config and the options of '
            'its command line'
        )


def refuse_test_set(config: dict) -> None:
    """Refuse a search on the test images.

    Raises:
        UserError: If the dataset of the search is marked as a test set, or is the one of the test.
    """
    searched, tested = (
        sources(config.get(name), name) for name in ('val_dataloader', 'test_dataloader')
    )
    marked = any(s.config.get('test_mode') or s.config.get('split') == 'test' for s in searched)
    whole = [s.read() for s in searched if all(cut.get('part') != 'heldout' for cut in s.splits)]
    if marked or any(source.read() in whole for source in tested):
        raise UserError(
            'is the test set; a subnet found on it cannot be tested on it. Search on '
            'tas_lora.HeldOutSplit(part="heldout") of the training set, or set '
            'val_cfg.search_on_test_set=True if you know what you are doing',
            'dataset',
        )


def _text(value) -> str:
    """Text of a value; a class or function of a pure Python config by its registry name."""
    return f'{value.__module__}.{value.__qualname__}' if callable(value) else str(value)
