"""Whether data sets mean what a run believes: names of classes, files, and who sees which images.

Names and places of files are compared, never their contents.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import combinations

import numpy as np
from mmengine.config import Config
from mmpretrain.datasets import MNIST, BaseDataset

from ..checks import of_part
from ..errors import UserError
from .class_folders import (
    check_class_names,
    check_files,
    check_same_folders,
    class_folders,
    warn,
)
from .idx_files import check_idx_files
from .sources import Source, are_disjoint, built_sources, recorded_sources, sources

_TRAIN, _VAL, _TEST = 'train_dataloader', 'val_dataloader', 'test_dataloader'
_SAME = 'give both the same size and seed'


def check_sources(cfg: Config | Mapping, loaders: Sequence[str]) -> None:
    """Check the data sets of a config before they are read.

    Compares class names with folders, and folders with each other; counts, and logs, the files in
    class folders that are left out; compares headers of MNIST's files. When training, the folders
    of the test set are compared as well, if they are there.

    Args:
        cfg: The config.
        loaders: Names of the dataloaders that will be used.

    Raises:
        UserError: Naming the data set, and what is odd in it.
    """
    seen, found = set(), []
    for source in (each for name in loaders for each in sources(cfg.get(name), name)):
        data = source.opened()
        folders = class_folders(data)
        if isinstance(data, MNIST):
            with of_part(source.place):
                check_idx_files(data)
        if folders is not None:
            check_class_names(source, data, folders)
            found.append((source, folders))
            if data.img_prefix not in seen:  # training and held-out images share a folder
                check_files(source, data, folders)
            seen.add(data.img_prefix)
    if _TRAIN in loaders and _TEST not in loaders:
        found += _named_folders(cfg.get(_TEST), _TEST)
    for other in found[1:]:
        check_same_folders(found[0], other)


def check_folders(loader: Mapping | None, field: str) -> list[str] | None:
    """Compare the names of classes with the folders of a dataloader, if there are any.

    Returns:
        The names of the first data set's folders.
    """
    return next((folders for _, folders in _named_folders(loader, field)), None)


def check_draws(cfg: Config | Mapping, loaders: Sequence[str]) -> None:
    """Refuse to validate or test on images that the config trains on.

    A validation on just the training set, which a config must spell out, is only reported.
    """
    trained = [(source, source.read()) for source in sources(cfg.get(_TRAIN), _TRAIN)]
    for name in (_VAL, _TEST):
        if name not in loaders and _TRAIN not in loaders:
            continue
        for other in sources(cfg.get(name), name):
            read = other.read()
            for source, images in trained:
                if images != read or are_disjoint(source, other):
                    continue
                if name == _VAL and _is_on_purpose(source, other):
                    warn(f'{other.place} validates on images that are trained on.')
                else:
                    raise UserError(_clash(source, other))


def check_recorded_draws(
    record: Mapping, loader: Mapping | None, escape: str, splits_only: bool = False
) -> None:
    """Refuse held-out images that were trained on, as the record in a checkpoint says.

    The record has no folders of data. Two folders of images that only these tell apart are not
    compared, unless both are split.

    Args:
        record: Settings of the run that wrote the checkpoint, as text by dotted path.
        loader: Config of the dataloader of held-out images.
        escape: How to continue anyway.
        splits_only: Look only at images that are split from a training set.
    """
    trained = recorded_sources(record, _TRAIN)
    for other in sources(loader, _VAL):
        for source in trained if other.splits or not splits_only else ():
            is_same = source.named() == other.named() and _is_telling(source, other)
            if is_same and not are_disjoint(source, other):
                what = _clash(source, other, 'the checkpoint was trained on')
                raise UserError(f'{what}; or {escape}')


def check_built(
    cfg: Config | Mapping, datasets: Mapping[str, object], trains_on_labels: bool = True
) -> None:
    """Check data sets that are read: labels, class names, and images that are in two of them.

    Args:
        cfg: The config.
        datasets: By name of the dataloader.
        trains_on_labels: Whether training images must have labels.

    Raises:
        UserError: If there are no labels, classes have other names, or images of the training are
            among those of a validation or test.
    """
    check_draws(cfg, list(datasets))
    for name, dataset in datasets.items():
        if trains_on_labels or name != _TRAIN:
            _check_labels(name, dataset)
    for (first, one), (second, other) in combinations(datasets.items(), 2):
        check_same_classes(first, _metainfo(one), second, _metainfo(other))
    if _TRAIN not in datasets:
        return
    trained, configs = files_of(datasets[_TRAIN]), sources(cfg.get(_TRAIN), _TRAIN)
    for name in {_VAL, _TEST} & set(datasets):
        evaluated, others = files_of(datasets[name]), sources(cfg.get(name), name)
        common = int(np.isin(evaluated, trained).sum())
        if common and not any(_is_on_purpose(a, b) for a in configs for b in others):
            raise UserError(
                f'{name}: {common:,} of its {len(evaluated):,} images are trained on; take them '
                f'out of one of the two, or with HeldOutSplit {_SAME}'
            )


def check_same_classes(first: str, one: Mapping, second: str, other: Mapping) -> None:
    """Refuse two lists of classes that differ; lists without a common name are only reported."""
    names, others = (
        list(map(str, meta.get('classes') or ()))
        if isinstance(meta.get('classes'), (list, tuple))
        else []
        for meta in (one, other)
    )
    if not names or not others or names == others:
        return
    if len(names) == len(others) and not set(names) & set(others):
        warn(f'{first} and {second} have other names for classes; taken for the same, in order.')
        return
    if len(names) != len(others):
        what = f'{first} has {len(names):,} classes, {second} has {len(others):,}'
    else:
        at = next(i for i, (a, b) in enumerate(zip(names, others, strict=True)) if a != b)
        what = f'class {at} is {names[at]!r} in {first}, but {others[at]!r} in {second}'
    raise UserError(
        f'{what}: labels would not mean the same; correct metainfo.classes or the folders'
    )


def trained_classes(checkpoint: object) -> Mapping:
    """What MMEngine's runner records of the training data; empty without it."""
    for key in ('meta', 'dataset_meta'):
        checkpoint = checkpoint.get(key) if isinstance(checkpoint, Mapping) else None
    return checkpoint if isinstance(checkpoint, Mapping) else {}


def files_of(dataset: object) -> np.ndarray:
    """Hash of the path of every image of a data set that has files."""
    return np.fromiter(map(hash, _paths(dataset)), np.int64)


def _named_folders(loader: Mapping | None, field: str) -> list[tuple[Source, list[str]]]:
    found = []
    for source in sources(loader, field):
        data = source.opened()
        if (folders := class_folders(data)) is not None:
            check_class_names(source, data, folders)
            found.append((source, folders))
    return found


def _paths(dataset: object) -> Iterator[str]:
    for source in built_sources(dataset):
        first = [source.get_data_info(i).get('img_path') for i in range(min(2, len(source)))]
        if None in first or len(set(first)) < len(first):
            continue  # images in memory, or all in one file
        for index in range(len(source)):
            yield os.path.abspath(source.get_data_info(index)['img_path'])


def _check_labels(name: str, dataset: object) -> None:
    """Refuse MMPretrain's images without a label of any kind, unless their pipeline adds one."""
    for source in built_sources(dataset):
        if not isinstance(source, BaseDataset) or not len(source):
            continue
        keys = list(source.get_data_info(0))
        if not _has_label(keys):
            with suppress(Exception):  # whatever it is, it brings no label
                keys = source[0]['data_samples'].keys()
        if not _has_label(keys):
            raise UserError(
                f'{name}: its images have no labels, so there is nothing to compare with; use data '
                'with labels, or export the subnet and classify by tools/predict.py'
            )


def _has_label(keys: Iterable[str]) -> bool:
    return any(key.startswith('gt_') for key in keys)


def _metainfo(dataset: object) -> Mapping:
    found = getattr(dataset, 'metainfo', None)
    return found if isinstance(found, Mapping) else {}


def _is_on_purpose(trained: Source, other: Source) -> bool:
    """Whether a config names the training set once more, whatever it does with its images."""
    first, second = (
        {k: v for k, v in each.config.items() if k not in ('pipeline', 'test_mode') and v}
        for each in (trained, other)
    )
    return first == second and not trained.splits and not other.splits


def _is_telling(one: Source, other: Source) -> bool:
    """Whether what two configs name says which images they read, without the folder of data."""
    _, *named = one.named()
    return any(named) or bool(one.splits and other.splits)


def _clash(source: Source, other: Source, drawn: str = 'the training draws') -> str:
    """Why images of ``other`` are among those of ``source``."""
    if not other.splits or not source.splits:
        return (
            f'{other.place}: reads images that {drawn}, from {source.place}; evaluate on others, '
            'such as tas_lora.HeldOutSplit(part="heldout") with its part="train" in '
            'train_dataloader'
        )
    held, trained = (
        ', '.join(f'{k}={v!r}' for k, v in each.splits[0].items() if k != 'type')
        for each in (other, source)
    )
    return (
        f'{other.place}: images of its split ({held}) are among those that {drawn} '
        f'({trained}); {_SAME}'
    )
