"""The split of a training set into images to train on and held-out images for the search."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from random import Random

import numpy as np
from mmpretrain.registry import DATASETS as MMPRETRAIN_DATASETS

from ..checks import boolean, natural, of_part, one_of, positive
from ..errors import UserError
from ..registry import DATASETS
from .class_folders import warn

_SHOWN = 10


@DATASETS.register_module(name='HeldOutSplit')
@of_part('HeldOutSplit')
def held_out_split(
    dataset: dict,
    part: str,
    size: int = 10_000,
    seed: int = 0,
    images: str | None = None,
    stratify: bool = False,
):
    """Build one of the two parts of a training set: held-out images, or the rest to train on.

    With equal arguments the two parts are disjoint and together complete. A warning tells how many
    classes have no image in the part.

    Args:
        dataset: Config of the complete training set.
        part: 'train' or 'heldout'.
        size: Number of held-out images, sampled at random.
        seed: Seed of the sampling.
        images: 'autoformer' for the list of the official code instead: 100 images of each class
            folder. (The official code also trains on them; here they are held out.)
        stratify: Hold out the same share of each class, as far as numbers allow: of every class
            with two or more images, at least one is held out and one trained on. Needs one label
            for each image. A smaller ``size`` holds out some of the same images.

    Returns:
        A dataset of the class that ``dataset`` names.

    Raises:
        UserError: If an argument is invalid, or the data set is too small.
    """
    one_of(part, 'part', ('train', 'heldout'))
    one_of(images, 'images', (None, 'autoformer'))
    positive(size, 'size', int)
    natural(seed, 'seed')
    if boolean(stratify, 'stratify') and images is not None:
        raise UserError(f'has no effect on the list of images={images!r}; leave it out', 'stratify')
    if not isinstance(dataset, Mapping) or 'type' not in dataset:
        raise UserError(f'must be a dict with a type, got {dataset!r}', 'dataset')
    whole = MMPRETRAIN_DATASETS.build(dataset)
    labels = [whole.get_data_info(index).get('gt_label') for index in range(len(whole))]
    if images == 'autoformer':
        infos = map(whole.get_data_info, range(len(whole)))
        paths = [info.get('img_path') for info in infos]
        if None in paths:
            raise UserError("images='autoformer' needs a dataset of files in class folders")
        held_out = official_subset(list(map(Path, paths)))
        train = np.setdiff1d(np.arange(len(whole)), held_out).tolist()
    else:
        held_out, train = random_split(len(whole), size, seed, labels if stratify else None)
    _warn_of_lost_classes(whole, labels, held_out if part == 'heldout' else train, part)
    # In place: MMEngine tracks copies by address, and may confuse them with later objects.
    whole.get_subset_(held_out if part == 'heldout' else train)
    return whole


def random_split(
    length: int, size: int, seed: int, labels: Sequence | None = None
) -> tuple[list[int], list[int]]:
    """Shuffle the indices below ``length``; return the first ``size``, and the rest.

    Equals fold 0 of MMPretrain's ``KFoldDataset``, which does not accept a size. With ``labels``,
    the images of each class are first spread evenly over the order.
    """
    if size >= length:
        raise UserError(f'is {size}, but the training set has {length} images; lower it', 'size')
    indices = list(range(length))
    np.random.default_rng(seed).shuffle(indices)
    if labels is not None:
        indices = _spread(indices, labels)
    return indices[:size], indices[size:]


def _spread(indices: list[int], labels: Sequence) -> list[int]:
    """Sort shuffled indices such that each beginning has nearly the same share of every class.

    The k-th of a class's n images stands at (k + 1/2) / n (the divisors of Sainte-Lague); the
    first is moved to the front and the last to the end.
    """
    if any(np.ndim(label) or label is None for label in labels):
        raise UserError('needs one label for each image; leave it out', 'stratify')
    totals, seen = Counter(map(int, labels)), Counter()
    places = {}
    for index in indices:
        label = int(labels[index])
        place = (seen[label] + 0.5) / totals[label]
        seen[label] += 1
        is_last, is_first = seen[label] == totals[label], seen[label] == 1
        places[index] = 1.0 if is_last else 0.0 if is_first else place
    return sorted(indices, key=places.get)  # stable: shuffled among equals


def _warn_of_lost_classes(whole, labels: Sequence, kept: Sequence[int], part: str) -> None:
    """Warn of classes without an image in a part. Several labels of an image count each."""
    if any(label is None for label in labels):
        return
    there = _classes(labels)
    lost = sorted(there - _classes([labels[index] for index in kept]))
    if not lost:
        return
    names = dict(enumerate(whole.metainfo.get('classes') or ()))
    shown = ', '.join(str(names.get(label, label)) for label in lost[:_SHOWN])
    warn(
        f'HeldOutSplit: {len(lost):,} of {len(there):,} classes have no '
        f'{"held-out" if part == "heldout" else "training"} image ({shown}'
        f'{", ..." if len(lost) > _SHOWN else ""}); set stratify=True in both parts, or another '
        'size'
    )


def _classes(labels: Iterable) -> set[int]:
    """Distinct labels; those of an image may be a list or an array."""
    distinct = {label for label in labels if isinstance(label, int)}
    arrays = (label for label in labels if not isinstance(label, int))
    return distinct | {int(one) for label in arrays for one in np.ravel(label)}


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
