"""What the data of a config say: where images are from, and the names of their classes."""

from collections.abc import Iterator, Mapping

import torch
from mmengine.runner import Runner
from mmpretrain.registry import DATASETS
from torch import Tensor

from ..errors import blame
from ..models import SupernetClassifier


def innermost(loader: Mapping | None) -> Mapping:
    """The dataset that others wrap, of a dataloader's config; empty if there is none."""
    dataset = (loader or {}).get('dataset') or {}
    while isinstance(dataset.get('dataset'), Mapping):
        dataset = dataset['dataset']
    return dataset


def class_names(loader: Mapping | None, count: int) -> list[str] | None:
    """Names that a dataset declares without a look at its files, if they are ``count``."""
    dataset = innermost(loader)
    declared = dict(getattr(DATASETS.get(str(dataset.get('type'))), 'METAINFO', {}))  # of a class
    names = (declared | dict(dataset.get('metainfo') or {})).get('classes')
    fits = isinstance(names, (list, tuple)) and len(names) == count
    return list(map(str, names)) if fits else None


@torch.no_grad()
def labelled_batches(model: SupernetClassifier, loader: Mapping) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised images and labels of a dataloader's config, on the CPU.

    Raises:
        UserError: If the data are not there.
    """
    with blame('test_dataloader cannot be built'):
        batches = Runner.build_dataloader(dict(loader), seed=0)
    for batch in batches:
        batch = model.data_preprocessor(batch, training=False)
        labels = torch.cat([sample.gt_label for sample in batch['data_samples']])
        yield batch['inputs'].cpu(), labels.cpu()
