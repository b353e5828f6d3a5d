"""Replayable batches, a function of (seed, epoch, position in the epoch).

Random states are neither saved nor restored; all generators are reseeded for each batch. A run
resumed at any iteration therefore sees what an uninterrupted one would, with any number of loader
workers, and augmentation differs between epochs.
"""

import os
import random
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.registry import DATA_SAMPLERS as MMENGINE_DATA_SAMPLERS
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from torch.utils.data import BatchSampler, DataLoader

from ..errors import UserError
from ..image_formats import restrict_pillow
from ..registry import DATA_SAMPLERS, DATASETS
from .image_depth import refuse_deep
from .workers import end_workers_at_exit, leave_signals_to_the_parent

UNREADABLE = 'unreadable'  # key in a batch: what could not be read
IMAGES, MODEL = 1, 2  # first word of a seed key: for images or for the model


def seed_everything(*key: int) -> None:
    """Seed the global generators of Python, NumPy and torch from a key of natural numbers.

    ``torch.manual_seed`` spends 0.4 ms on a stack trace if CUDA is not in use.
    """
    words = np.random.SeedSequence(key).generate_state(8)
    random.seed(words[:4].tobytes())
    np.random.seed(words[4:6])
    seed = int.from_bytes(words[6:].tobytes(), 'little') >> 1
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


class SeededBatch(list):
    """Indices of a batch, with the key that seeds its random numbers."""

    def __init__(self, indices, key: tuple[int, ...]):
        super().__init__(indices)
        self.key = key


@DATA_SAMPLERS.register_module()
class ReplayBatchSampler:
    """Batches of another sampler with their keys, starting anywhere in an epoch.

    Args:
        sampler: MMEngine's or MMPretrain's sampler of indices.
        batch_size: Images per batch.
        drop_last: Drop an incomplete last batch.
        inner: Config of a batch sampler to use instead of consecutive batches.
    """

    def __init__(self, sampler, batch_size: int, drop_last: bool = False, inner=None):
        if inner is None:
            self.inner = BatchSampler(sampler, batch_size, drop_last)
        else:
            arguments = dict(sampler=sampler, batch_size=batch_size)
            self.inner = MMENGINE_DATA_SAMPLERS.build(inner, default_args=arguments)
        self.sampler = sampler  # MMEngine's hook sets its epoch
        self.seed = self.epoch = self.first = 0

    def set_place(self, seed: int, epoch: int, first: int) -> None:
        """Continue in ``epoch`` with batch ``first``, counted from 0."""
        self.seed, self.epoch, self.first = seed, epoch, first
        if hasattr(self.sampler, 'seed'):  # seed of the order; without it, the order is fixed
            self.sampler.seed = seed

    def __len__(self) -> int:
        return len(self.inner)

    def __iter__(self) -> Iterator[SeededBatch]:
        rank, first = get_rank(), self.first
        for place, indices in enumerate(self.inner):
            if place >= first:
                yield SeededBatch(indices, (IMAGES, self.seed, self.epoch, rank, place))


@DATASETS.register_module()
class ReplayDataset:
    """A dataset read in batches, each with the random numbers of its key.

    An image that cannot be read is replaced by another one of the dataset. The sample's metainfo
    ``unreadable`` then says which failed and why, and the training loop decides what to do.

    Args:
        dataset: The dataset, or its config.
        replace: Replace an image that fails. This would falsify an evaluation: if False, the
            entire batch becomes ``dict(unreadable=[why])``.
    """

    ATTEMPTS = 10  # consecutive images that may fail

    def __init__(self, dataset, replace: bool = True):
        is_config = isinstance(dataset, Mapping)
        self.dataset = MMENGINE_DATASETS.build(dataset) if is_config else dataset
        self.replace = replace
        self.takes_deep = _keeps_depth(self.dataset)

    @property
    def metainfo(self) -> dict:
        """The metainfo of the dataset."""
        return getattr(self.dataset, 'metainfo', {})  # plain torch datasets lack it

    def full_init(self) -> None:
        """As in MMEngine's ``BaseDataset``."""
        if hasattr(self.dataset, 'full_init'):  # plain torch datasets have none
            self.dataset.full_init()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int):
        return self.dataset[index]

    def __getitems__(self, batch: list[int]) -> list:
        """Read the samples of a batch; called by loader workers."""
        restrict_pillow()  # a worker that was spawned is a process of its own
        if isinstance(batch, SeededBatch):
            seed_everything(*batch.key)
        samples = [self._read(index) for index in batch]
        failed = [sample for sample in samples if isinstance(sample, str)]
        return [{UNREADABLE: '; '.join(failed)}] if failed else samples

    def _read(self, index: int):
        """A sample, or a text that says why there is none."""
        failed = []
        for _ in range(self.ATTEMPTS if self.replace else 1):
            try:
                if not self.takes_deep:
                    refuse_deep(self._name(index))
                sample = self.dataset[index]
            except MemoryError:
                raise
            except Exception as error:  # decoders and transforms raise all kinds of errors
                if os.environ.get('TAS_LORA_DEBUG'):
                    raise
                is_named = isinstance(error, UserError)
                failed.append(str(error) if is_named else f'{self._name(index)}: {_reason(error)}')
                index = int(np.random.randint(len(self)))
                continue
            if failed:
                sample['data_samples'].set_metainfo({UNREADABLE: failed})
            return sample
        return '; '.join(failed)

    def _name(self, index: int) -> str:
        """The file of an image, or its index."""
        try:
            return self.dataset.get_data_info(index)['img_path']
        except (AttributeError, KeyError, TypeError):  # an image in memory
            return f'image {index}'


def _keeps_depth(dataset) -> bool:
    """Whether a pipeline inside of the wrappers reads images with all their bits."""
    while not hasattr(dataset, 'pipeline') and hasattr(dataset, 'dataset'):
        dataset = dataset.dataset
    steps = getattr(getattr(dataset, 'pipeline', None), 'transforms', ())
    return any(getattr(step, 'color_type', None) == 'unchanged' for step in steps)


def replayable(dataloader: Mapping | DataLoader):
    """Make the batches of a training dataloader's config replayable; leave a built one as it is."""
    if not isinstance(dataloader, Mapping):
        return dataloader
    config = _with_dataset(dataloader, replace=True)
    config['batch_sampler'] = dict(
        type='tas_lora.ReplayBatchSampler',
        drop_last=config.pop('drop_last', False),
        inner=config.pop('batch_sampler', None),
    )
    return config


def readable(dataloader: Mapping | DataLoader):
    """Prepare the config of an evaluation's dataloader; leave a built one as it is.

    An unreadable image then yields a batch that :func:`check_readable` refuses by name.
    """
    if not isinstance(dataloader, Mapping):
        return dataloader
    return _with_dataset(dataloader, replace=False)


def _with_dataset(dataloader: Mapping, replace: bool) -> dict:
    config = dict(dataloader)
    config['dataset'] = dict(
        type='tas_lora.ReplayDataset', dataset=config['dataset'], replace=replace
    )
    config.setdefault('worker_init_fn', dict(type=leave_signals_to_the_parent))
    end_workers_at_exit()
    config.pop('disable_subprocess_warning', None)  # an argument of MMEngine's own function
    return config


def check_readable(data_batch: dict) -> None:
    """Raise :class:`UserError` if a batch of an evaluation has an unreadable image."""
    if UNREADABLE in data_batch:
        raise UserError(
            f'{data_batch[UNREADABLE][0]}; an evaluation skips no image: repair or remove it'
        )


def _reason(error: Exception) -> str:
    return f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'
