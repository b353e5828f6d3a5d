"""What the data sets of a config read, found without reading it."""

import inspect
import os
from ast import literal_eval
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mmengine.dataset import BaseDataset as MMEngineDataset
from mmengine.dataset import ConcatDataset
from mmpretrain.datasets import MNIST, CustomDataset
from mmpretrain.datasets import BaseDataset as MMPretrainDataset
from mmpretrain.registry import DATASETS

from .replay import ReplayDataset

_SPLITS = {'HeldOutSplit': 'HeldOutSplit', 'held_out_split': 'HeldOutSplit'}
_SPLITS['KFoldDataset'] = 'KFoldDataset'
_DEFAULTS = dict(
    HeldOutSplit=dict(part=None, size=10_000, seed=0, images=None, stratify=False),
    KFoldDataset=dict(fold=0, num_splits=5, test_mode=False, seed=None),
)
_NO_CHOICE = ('type', 'pipeline', 'test_mode', 'lazy_init', 'serialize_data', 'max_refetch')
_NO_CHOICE += ('metainfo', 'data_root', 'data_prefix', 'ann_file', 'download', 'classes')
_NO_CHOICE += ('with_label', 'extensions', 'filter_cfg')
_LAST = ('size', 'part', 'fold', 'test_mode')  # of splits that share an order of images


@dataclass(frozen=True)
class Source:
    """A data set inside of the wrappers of a dataloader's config.

    Args:
        place: Path of its config, such as 'val_dataloader.dataset.dataset'.
        config: Its config.
        splits: Arguments of the splits around it, innermost first.
    """

    place: str
    config: Mapping
    splits: tuple[dict, ...] = ()

    @property
    def loader(self) -> str:
        """Name of the dataloader."""
        return self.place.split('.')[0]

    def opened(self) -> MMPretrainDataset | None:
        """The data set with its paths settled but nothing read; None if it is not MMPretrain's."""
        with suppress(Exception):  # the real build reports what is wrong
            kind = self.config['type']
            cls = kind if inspect.isclass(kind) else DATASETS.get(kind)
            if issubclass(cls, MMPretrainDataset):
                return DATASETS.build(dict(self.config, lazy_init=True, pipeline=[]))
        return None

    def named(self) -> tuple:
        """The images that the config names, whatever folder they are in."""
        prefix, kind = self.config.get('data_prefix'), kind_of(self.config)
        prefixes = sorted(prefix.items()) if isinstance(prefix, Mapping) else [('img_path', prefix)]
        paths = [os.path.normpath(str(path or '')) for _, path in prefixes]
        paths = [path for path in (*paths, str(self.config.get('ann_file') or '')) if path != '.']
        told = 'test_mode' if kind in ('MNIST', 'FashionMNIST') else 'split'
        indices = self.config.get('indices')
        return kind, *filter(None, (*paths, self.config.get(told), indices and str(indices)))

    def read(self) -> tuple:
        """The images that are read: files if they are known, else what the config names."""
        data = self.opened()
        # Any other argument may choose among the images, as one called `part` does.
        chosen = {k: str(v) for k, v in self.config.items() if k not in _NO_CHOICE}
        if isinstance(data, MNIST):
            chosen.pop('split', None)  # test_mode alone chooses
        rest = str(sorted(chosen.items()))
        if data is None:
            return *self.named(), self.config.get('data_root'), rest
        if isinstance(data, CustomDataset):
            return _absolute(data.ann_file or data.img_prefix), rest
        files = tuple(map(_absolute, (data.ann_file, *data.data_prefix.values())))
        told = data.test_mode if isinstance(data, MNIST) else None
        return kind_of(self.config), *files, told, rest


def sources(loader: Mapping | None, field: str) -> list[Source]:
    """The data sets inside of wrappers, concatenations and splits of a dataloader's config."""
    return list(_inside((loader or {}).get('dataset'), f'{field}.dataset', ()))


def recorded_sources(record: Mapping, field: str) -> list[Source]:
    """As :func:`sources`, from the record of a run: texts by dotted path.

    The record may be a stranger's: its values are compared, never built.
    """
    tree: dict = {}
    for path, text in record.items():
        *above, last = str(path).split('.')
        node = tree
        for key in above:
            inner = node.setdefault(key, {})
            node = inner if isinstance(inner, dict) else {}
        node[last] = _value(text)
    loader = tree.get(field)
    return sources(loader if isinstance(loader, dict) else None, field)


def built_sources(dataset: object) -> Iterator[MMEngineDataset]:
    """The data sets inside of wrappers that are built; of other libraries' wrappers, none."""
    if isinstance(dataset, MMEngineDataset):
        yield dataset
    elif isinstance(dataset, ConcatDataset):
        for part in dataset.datasets:
            yield from built_sources(part)
    elif isinstance(dataset, ReplayDataset) or hasattr(dataset, 'get_data_info'):
        yield from built_sources(getattr(dataset, 'dataset', None))


def are_disjoint(one: Source, other: Source) -> bool:
    """Whether splits of the same images keep those of two data sets apart."""
    for first, second in zip(one.splits, other.splits, strict=False):
        if _are_two_sides(first, second):
            return True
        if first != second:
            return False
    return False


def kind_of(config: Mapping) -> str:
    """Name of the class that a config names, without its module or scope."""
    kind = config.get('type')
    return getattr(kind, '__name__', str(kind)).split('.')[-1]


def _inside(node, place: str, splits: tuple) -> Iterator[Source]:
    if not isinstance(node, Mapping):
        return
    name = _SPLITS.get(kind_of(node))
    if name:
        arguments = {key: node.get(key, value) for key, value in _DEFAULTS[name].items()}
        if arguments.get('images'):  # the official list has neither size nor seed
            arguments.update(size=0, seed=0)
        splits = (dict(arguments, type=name), *splits)
    inner, parts = node.get('dataset'), node.get('datasets') or ()
    if isinstance(parts, Mapping):  # a list, in a record
        parts = tuple(parts.values())
    if isinstance(inner, Mapping):
        yield from _inside(inner, f'{place}.dataset', splits)
    elif any(isinstance(part, Mapping) for part in parts):
        for i, part in enumerate(parts):
            yield from _inside(part, f'{place}.datasets.{i}', splits)
    else:
        yield Source(place, node, splits)


def _are_two_sides(one: dict, other: dict) -> bool:
    """Whether two splits are the two sides of one cut, or leave images between their cuts."""
    if {k: v for k, v in one.items() if k not in _LAST} != {
        k: v for k, v in other.items() if k not in _LAST
    }:
        return False
    if one['type'] == 'KFoldDataset':
        is_one_fold = one['fold'] == other['fold'] and one['test_mode'] != other['test_mode']
        return is_one_fold or (one['test_mode'] and other['test_mode'] and one != other)
    sides = {split['part']: split['size'] for split in (one, other)}
    # Sizes cut the same order of images: fewer held-out ones are among the first.
    whole = all(isinstance(size, int) for size in sides.values())
    return whole and set(sides) == {'train', 'heldout'} and sides['heldout'] <= sides['train']


def _absolute(path: str) -> str:
    return path if '://' in path else os.path.realpath(Path(path).expanduser()) if path else ''


def _value(text):
    """A value from its text in a record; names of classes stay texts."""
    try:
        return literal_eval(text) if len(text) < 10_000 else text
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
