"""What a search is: by which it is resumed, repeated, and told from another."""

import json
import platform
import sys
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ...errors import UserError
from ...files import write_atomic
from .same_run import differences, run_record

FILE = 'search.json'
_SECTIONS = ('model', 'val_cfg', 'val_dataloader', 'val_evaluator')
_PACKAGES = ('tas-lora', 'torch', 'mmengine', 'mmpretrain', 'numpy')


def identity_of(config: dict, checkpoint: str | None) -> dict:
    """All that a search follows from, and by what it was run.

    Args:
        config: The whole config.
        checkpoint: Path of the weights, if any were loaded.
    """
    digest = None
    if checkpoint and Path(checkpoint).is_file():
        digest = sha256(Path(checkpoint).read_bytes()).hexdigest()
    versions = {package: _version(package) for package in _PACKAGES}
    return dict(
        checkpoint=checkpoint,
        checkpoint_sha256=digest,
        command=sys.argv,
        versions=versions | dict(python=platform.python_version()),
        settings=run_record(config, _SECTIONS),
        config=json.loads(json.dumps(dict(config), default=str)),
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # on the path without an installation
        return 'not installed'


def begin_search(folder: Path, identity: dict, resume: bool) -> None:
    """Write the identity of a search beside its history, or compare it with the one there.

    Raises:
        UserError: If the search to go on with is another one, naming what differs.
    """
    path = folder / FILE
    if resume and path.exists():
        before = json.loads(path.read_text())
        records = [
            dict(found['settings'], checkpoint_sha256=found['checkpoint_sha256'])
            for found in (before, identity)
        ]
        if changes := differences(*records):
            raise UserError(
                f'{path} is of another search: {changes}; search anew, without --resume'
            )
    write_atomic(path, json.dumps(identity, indent=2) + '\n')


def refuse_test_set(config: dict) -> None:
    """Refuse a search on the images that its result is to be tested on.

    Raises:
        UserError: If the dataset of the search is marked as test set, or is the one of the test.
    """
    searched, tested = (
        _innermost((config.get(loader) or {}).get('dataset'))
        for loader in ('val_dataloader', 'test_dataloader')
    )
    marked = searched.get('test_mode') is True or searched.get('split') == 'test'
    same = bool(searched) and _source(searched) == _source(tested)
    if marked or (same and not _is_held_out(config['val_dataloader'])):
        raise UserError(
            'val_dataloader.dataset is the test set; what is found on it cannot be tested on it. '
            'Search on tas_lora.HeldOutSplit(part="heldout") of the training set, or set '
            'val_cfg.search_on_test_set=True if you know what you do'
        )


def _innermost(dataset) -> dict:
    """The dataset inside of wrappers."""
    while isinstance(dataset, dict) and isinstance(dataset.get('dataset'), dict):
        dataset = dataset['dataset']
    return dict(dataset) if isinstance(dataset, dict) else {}


def _source(dataset: dict) -> dict:
    """Where the images of a dataset come from."""
    return {key: value for key, value in dataset.items() if key != 'pipeline'}


def _is_held_out(loader: dict) -> bool:
    dataset = loader.get('dataset') or {}
    return dataset.get('type') == 'tas_lora.HeldOutSplit' and dataset.get('part') == 'heldout'
