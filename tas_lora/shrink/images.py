"""The folder of images that a network is shrunk for."""

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from pathlib import Path

from mmengine.fileio import list_dir_or_file
from mmpretrain.datasets import CustomDataset

from ..datasets.class_folders import some
from ..errors import UserError

_SHARE = 5  # a fifth of the training images is held out, but not more than _MOST
_MOST = 10_000
_SUFFIXES = signature(CustomDataset.__init__).parameters['extensions'].default


@dataclass(frozen=True)
class ImageFolder:
    """Images in class folders, split into training, test, and maybe validation.

    Args:
        root: The folder.
        files: Names and sizes of the images by split and class.
    """

    root: Path
    files: dict[str, dict[str, list[tuple[str, int]]]]

    @classmethod
    def read(cls, root: str | Path, batch_size: int) -> 'ImageFolder':
        """List the images.

        Raises:
            UserError: If a split is missing, there is one class, classes differ between splits, or
                an epoch would have less than two batches.
        """
        root = Path(root).resolve()
        splits = ['train', 'test', *(['val'] if (root / 'val').is_dir() else [])]
        for name in splits:
            if not (root / name).is_dir():
                raise UserError(
                    f'{root} has no folder {name}; images are expected as {name}/CLASS/FILE'
                )
        found = cls(root, {name: _listed(root / name) for name in splits})
        found._check(batch_size)
        return found

    def check_out(self, folder: Path) -> None:
        """Refuse an output folder among the images, which would become a class.

        Raises:
            UserError: If it is one.
        """
        splits = [self.root / name for name in ('train', 'test', 'val')]
        classes = [self.root / name / each for name in self.files for each in self.classes]
        places = [place.resolve() for place in (*splits, *classes)]  # any may be a link
        if folder == self.root or any(folder.is_relative_to(place) for place in places):
            raise UserError(f'--out {folder} is among the images; name a folder elsewhere')

    @property
    def classes(self) -> list[str]:
        """Names in the order of labels."""
        return sorted(self.files['train'])

    @property
    def has_val(self) -> bool:
        """Whether there are validation images."""
        return 'val' in self.files

    @cached_property
    def held_out(self) -> int:
        """Number of images for choices and the search."""
        if self.has_val:
            return self._count('val')
        return min(_MOST, max(len(self.classes), self._count('train') // _SHARE))

    @property
    def trained(self) -> int:
        """Number of images to train on."""
        return self._count('train') - (0 if self.has_val else self.held_out)

    @property
    def tested(self) -> int:
        """Number of test images."""
        return self._count('test')

    def unseen(self, count: int) -> float:
        """Classes that so many random training images are expected not to show."""
        total = self._count('train')
        return sum((1 - len(files) / total) ** count for files in self.files['train'].values())

    def digest(self) -> str:
        """SHA-256 of names and sizes of all images."""
        return hashlib.sha256(repr(sorted(self._lines())).encode()).hexdigest()

    def _lines(self):
        for split, classes in self.files.items():
            for name, files in classes.items():
                yield from (f'{split}/{name}/{file} {size}' for file, size in files)

    def _count(self, split: str) -> int:
        return sum(map(len, self.files[split].values()))

    def _check(self, batch_size: int) -> None:
        classes = self.classes
        if len(classes) < 2:
            raise UserError(
                f'{self.root}/train has {len(classes)} class{"" if classes else "es"} '
                f'({some(classes) or "no folder"}); a classifier needs two or more folders'
            )
        for split, others in self.files.items():
            extra, missing = (
                some(sorted(a - b))
                for a, b in ((set(others), set(classes)), (set(classes), set(others)))
            )
            if extra or missing:
                parts = (extra and f'has {extra}', missing and f'lacks {missing}')
                raise UserError(
                    f'{self.root}/{split} {" and ".join(filter(None, parts))}, unlike train; '
                    'labels are places of folders, so give all splits the same class folders'
                )
        for name, files in self.files['train'].items():
            if not files:
                raise UserError(f'{self.root}/train/{name} has no image; add some, or remove it')
        for split in self.files:
            if not self._count(split):
                raise UserError(f'{self.root}/{split} has no image; add some')
        self._check_batches(batch_size)

    def _check_batches(self, batch_size: int) -> None:
        if self.trained < 2 * batch_size:  # the first step of an epoch is the start of a warm-up
            what = '' if self.has_val else f' (of {self._count("train")}, the others are held out)'
            half = self.trained // 2
            raise UserError(
                f'{self.root}/train has {self.trained} images to train on{what}, and two batches '
                f'have {2 * batch_size}; '
                + (f'give --batch-size {half} or fewer, or more images' if half else 'add images')
            )


def _listed(folder: Path) -> dict[str, list[tuple[str, int]]]:
    """Images by class folder, as the data set lists them."""
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if e.is_dir() and not e.name.startswith('.')]
    return {name: sorted(_images(folder / name)) for name in names}


def _images(folder: Path):
    for file in list_dir_or_file(folder, list_dir=False, recursive=True):
        if file.lower().endswith(_SUFFIXES):
            yield file, (folder / file).stat().st_size
