"""The split of a training set into images to train on and held-out images for the search."""

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
    """Build one of the two parts of a training set: held-out images, or the rest to train on.

    With equal arguments the two parts are disjoint and together complete.

    Args:
        dataset: Config of the complete training set.
        part: 'train' or 'heldout'.
        size: Number of held-out images, sampled at random.
        seed: Seed of the sampling.
        images: 'autoformer' for the list of the official code instead: 100 images of each class
            folder. (The official code also trains on them; here they are held out.)

    Returns:
        A dataset of the class that ``dataset`` names.

    Raises:
        UserError: If an argument is invalid, or the data set is too small.
    """
    one_of(part, 'part', ('train', 'heldout'))
    one_of(images, 'images', (None, 'autoformer'))
    positive(size, 'size', int)
    natural(seed, 'seed')
    if not isinstance(dataset, Mapping) or 'type' not in dataset:
        raise UserError(f'must be a dict with a type, got {dataset!r}', 'dataset')
    whole = MMPRETRAIN_DATASETS.build(dataset)
    if images == 'autoformer':
        infos = map(whole.get_data_info, range(len(whole)))
        paths = [info.get('img_path') for info in infos]
        if None in paths:
            raise UserError("images='autoformer' needs a dataset of files in class folders")
        held_out = official_subset(list(map(Path, paths)))
        train = np.setdiff1d(np.arange(len(whole)), held_out).tolist()
    else:
        held_out, train = random_split(len(whole), size, seed)
    # In place: MMEngine tracks copies by address, and may confuse them with later objects.
    whole.get_subset_(held_out if part == 'heldout' else train)
    return whole


def random_split(length: int, size: int, seed: int) -> tuple[list[int], list[int]]:
    """Shuffle the indices below ``length``; return the first ``size``, and the rest.

    Equals fold 0 of MMPretrain's ``KFoldDataset``, which does not accept a size.
    """
    if size >= length:
        raise UserError(f'is {size}, but the training set has {length} images; lower it', 'size')
    indices = list(range(length))
    np.random.default_rng(seed).shuffle(indices)
    return indices[:size], indices[size:]


def official_subset(paths: list[Path], per_class: int = 100) -> list[int]:
    """Indices of the images that AutoFormer's script selects, given the paths of all.

    It seeds Python's generator with 0, and samples from each class's sorted files, class by class.
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
