"""The split between what is trained on and what the search is scored on."""

from collections.abc import Mapping
from pathlib import Path
from random import Random

import numpy as np
from mmpretrain.registry import DATASETS as MMPRETRAIN_DATASETS

from ..checks import natural, of_part, one_of, positive
from ..errors import UserError
from ..registry import DATASETS


@DATASETS.register_module(name='HeldOutSplit')
@of_part('HeldOutSplit')
def held_out_split(dataset: dict, part: str, size: int = 10_000, seed: int = 0, images=None):
    """One of the two parts of a training set: the rest to train on, or the held-out images.

    Both parts follow from the same arguments, so they are disjoint and together complete.

    Args:
        dataset: Config of the whole training set.
        part: 'train' or 'heldout'.
        size: Number of held-out images, drawn at random.
        seed: Seed of the draw.
        images: 'autoformer' for the list of the official code in place of a draw: 100 images of
            each class folder (the official code trains on them, too; here they are held out).

    Returns:
        A dataset of the class that ``dataset`` names.

    Raises:
        UserError: If an argument is none, or the data set is too small.
    """
    one_of(part, 'part', ('train', 'heldout'))
    one_of(images, 'images', (None, 'autoformer'))
    positive(size, 'size', int)
    natural(seed, 'seed')
    if not isinstance(dataset, Mapping) or 'type' not in dataset:
        raise UserError(f'must be a dict with a type, got {dataset!r}', 'dataset')
    whole = MMPRETRAIN_DATASETS.build(dataset)
    if images == 'autoformer':
        held_out = official_subset(_paths(whole))
        train = np.setdiff1d(np.arange(len(whole)), held_out).tolist()
    else:
        held_out, train = random_split(len(whole), size, seed)
    # In place: MMEngine's copies are noted by address, and may be mixed up with later objects.
    whole.get_subset_(held_out if part == 'heldout' else train)
    return whole


def random_split(length: int, size: int, seed: int) -> tuple[list[int], list[int]]:
    """Indices below ``length`` shuffled, the first ``size`` and the rest.

    The same as fold 0 of MMPretrain's ``KFoldDataset``, which cannot be told a size.
    """
    if size >= length:
        raise UserError(f'is {size}, but the training set has {length} images; lower it', 'size')
    indices = list(range(length))
    np.random.default_rng(seed).shuffle(indices)
    return indices[:size], indices[size:]


def official_subset(paths: list[Path], per_class: int = 100) -> list[int]:
    """Indices of the images that AutoFormer's script picks, from the paths of all.

    Python's generator seeded with 0, classes in sorted order, and of each the sorted files.
    """
    classes: dict[str, dict[str, int]] = {}
    for i, path in enumerate(paths):
        classes.setdefault(path.parent.name, {})[path.name] = i
    random, chosen = Random(0), []
    for name in sorted(classes):
        files = classes[name]
        if len(files) <= per_class:
            raise UserError(f'class {name} has {len(files)} images, {per_class} are to be held out')
        chosen += [files[file] for file in random.sample(sorted(files), per_class)]
    return sorted(chosen)


def _paths(dataset) -> list[Path]:
    infos = map(dataset.get_data_info, range(len(dataset)))
    paths = [info.get('img_path') for info in infos]
    if None in paths:
        raise UserError("images='autoformer' needs a dataset of files in class folders")
    return list(map(Path, paths))
