"""Folders of images, one for each class: their names, and the files that are left out."""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging import print_log
from mmpretrain.datasets import CustomDataset

from ..errors import UserError
from .sources import Source

_SHOWN = 5


@register_backend('local', force=True, prefixes='')
class VisibleFiles(LocalBackend):
    """MMEngine's local files, without hidden folders; it leaves out hidden files itself.

    A folder such as .ipynb_checkpoints would become a class, and shift the labels after it.
    """

    def list_dir_or_file(self, *args, **kwargs) -> Iterator[str]:
        """As in MMEngine."""
        for path in super().list_dir_or_file(*args, **kwargs):
            if not path.startswith('.') and f'{os.sep}.' not in path:
                yield path


def class_folders(data: object) -> list[str] | None:
    """Folders that a data set takes for classes, in the order of labels; None if it takes none."""
    labelled = isinstance(data, CustomDataset) and data.with_label and not data.ann_file
    if not labelled or not Path(data.img_prefix).is_dir():
        return None
    with os.scandir(data.img_prefix) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith('.'))


def check_class_names(source: Source, data: CustomDataset, folders: Sequence[str]) -> None:
    """Refuse class names in a config that are not the names of the folders.

    ``metainfo.folders`` names the folders of classes that are called otherwise.
    """
    names, told = data.metainfo.get('classes'), data.metainfo.get('folders')
    if names is None or (told is None and names == type(data).METAINFO.get('classes')):
        return  # those of a known data set, whose folders have other names
    if not isinstance(names, (list, tuple)) or len(told or names) != len(names):
        raise UserError(
            f'{source.place}.metainfo: classes and folders must be lists of equal length, got '
            f'{names!r} and {told!r}'
        )
    expected, place = list(map(str, told or names)), f'{source.place}: {Path(data.img_prefix)}'
    if expected == list(folders):
        return
    if faults := _odd_folders(folders, expected, 'the classes'):
        raise UserError(
            f'{place} {faults}. Labels are places of folders, so classes would be mixed up: name '
            'the folders as metainfo.classes does, add an empty one for a class that a test lacks, '
            'or name them in metainfo.folders'
        )
    at = next(
        i for i, (one, other) in enumerate(zip(expected, folders, strict=True)) if one != other
    )
    raise UserError(
        f'{place}: the names of classes are not in the order of labels, which is that of the '
        f'sorted folders: name {at} is {expected[at]!r}, folder {at} is {folders[at]!r}; sort them'
    )


def check_same_folders(one: tuple[Source, Sequence[str]], other: tuple[Source, Sequence[str]]):
    """Refuse two data sets of one config whose classes have other folders."""
    (first, folders), (second, others) = one, other
    if list(folders) == list(others):
        return
    raise UserError(
        f'{second.place} {_odd_folders(others, folders, first.place)}. Labels are places of '
        'folders, so classes would be mixed up: rename or remove a folder, or add an empty one to '
        'a validation or test set'
    )


def check_files(source: Source, data: CustomDataset, folders: Sequence[str]) -> None:
    """Count the files that are not taken as images, and log how many there are.

    Raises:
        UserError: If a class ends without an image. Of a set that trains nothing, a class may have
            an empty folder.
    """
    taken, left = _count_files(data, folders)
    empty = [name for name in folders if not taken[name]]
    trains = source.loader == 'train_dataloader' or bool(source.splits)
    lost = [name for name in empty if left.get(name)]
    if lost or (empty and trains):
        files = sum((left[name] for name in lost), Counter())
        why = f'{_suffixes(files)} left out{_advice(data)}' if lost else 'add some, or remove them'
        raise UserError(f'{source.place}: {_without(lost or empty, data)}; {why}')
    if empty:
        warn(f'{source.place}: {_without(empty, data)}.')
    if out := sum(left.values(), Counter()):
        files = out.total() + sum(taken.values())
        warn(
            f'{source.place}: {out.total():,} of {files:,} files in {Path(data.img_prefix)} are '
            f'left out: {_suffixes(out)}{_advice(data)}.'
        )


def warn(line: str) -> None:
    """Log a warning, on the main process."""
    print_log(line, 'current', logging.WARNING)


def some(names: Sequence[str]) -> str:
    """The first of some names, quoted, and how many more there are; empty for none."""
    more = len(names) - _SHOWN
    return ', '.join(map(repr, names[:_SHOWN])) + (f' and {more:,} more' if more > 0 else '')


def _count_files(data: CustomDataset, folders) -> tuple[Counter, dict[str, Counter]]:
    """Number of images by class, and of other files by class and suffix; '' for no class."""
    taken, left = Counter(), {}
    for name in folders:
        for file in _files_below(os.path.join(data.img_prefix, name)):
            if data.is_valid_file(file):
                taken[name] += 1
            else:
                left.setdefault(name, Counter())[Path(file).suffix.lower()] += 1
    with os.scandir(data.img_prefix) as entries:
        outside = [e.name for e in entries if e.is_file() and not e.name.startswith('.')]
    left[''] = Counter(f'{Path(file).suffix.lower()} outside of classes' for file in outside)
    return taken, left


def _files_below(folder: str) -> Iterator[str]:
    """Names of the files in a folder and those inside, but hidden ones."""
    for _, inner, files in os.walk(folder, followlinks=True):
        inner[:] = [name for name in inner if not name.startswith('.')]
        yield from (name for name in files if not name.startswith('.'))


def _odd_folders(folders: Sequence[str], expected: Sequence[str], whose: str) -> str:
    """What is odd in folders; empty if they are those expected, in any order."""
    odd = some([name for name in folders if name not in expected])
    missing = some([name for name in expected if name not in folders])
    odd = f'has {odd}, not among {whose}' if odd else ''
    return ' and '.join(filter(None, (odd, f'lacks {missing} of {whose}' if missing else '')))


def _without(names: Sequence[str], data: CustomDataset) -> str:
    count = f'{len(names)} class has' if len(names) == 1 else f'{len(names)} classes have'
    return f'{count} no image in {Path(data.img_prefix)} ({some(names)})'


def _suffixes(counts: Counter) -> str:
    shown = [f'{n:,} {name or "without a suffix"}' for name, n in counts.most_common(_SHOWN)]
    return ', '.join(shown) + (' and others' if len(counts) > _SHOWN else '')


def _advice(data: CustomDataset) -> str:
    return f'; taken are {", ".join(sorted(data.extensions))}: convert them, or add to extensions'
