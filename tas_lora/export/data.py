"""What the data of a config say: where images are from, and the names of their classes."""

from collections.abc import Iterator, Mapping

import torch
from mmengine.runner import Runner
from mmpretrain.registry import DATASETS
from torch import Tensor

from ..errors import UserError, blame
from ..models import SupernetClassifier


def innermost(loader: Mapping | None) -> Mapping:
    """The dataset that others wrap, of a dataloader's config; empty if there is none."""
    dataset = (loader or {}).get('dataset') or {}
    while isinstance(dataset.get('dataset'), Mapping):
        dataset = dataset['dataset']
    return dataset


def class_names(checkpoint: object, loader: Mapping | None, count: int) -> list[str] | None:
    """Names of the classes: those a training wrote down, or else those a dataset declares.

    A folder of images gets its names from its sub-folders, which a training has seen; no file of
    a dataset is looked at here.

    Args:
        checkpoint: Content of a checkpoint.
        loader: A dataloader's config.
        count: Number of classes; other numbers of names are of other data.
    """
    declared = (_trained_on(checkpoint), _declared(innermost(loader)))
    fitting = (
        list(map(str, names))
        for names in (meta.get('classes') for meta in declared)
        if isinstance(names, (list, tuple)) and len(names) == count
    )
    return next(fitting, None)


def _trained_on(checkpoint: object) -> Mapping:
    """What MMEngine's runner writes down of the training data; empty without it."""
    for key in ('meta', 'dataset_meta'):
        checkpoint = checkpoint.get(key) if isinstance(checkpoint, Mapping) else None
    return checkpoint if isinstance(checkpoint, Mapping) else {}


def _declared(dataset: Mapping) -> dict:
    """What class and config of a dataset say."""
    of_class = getattr(DATASETS.get(str(dataset.get('type'))), 'METAINFO', {})  # some have none
    return dict(of_class) | dict(dataset.get('metainfo') or {})


@torch.no_grad()
def labelled_batches(
    model: SupernetClassifier, loader: Mapping | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised images and labels of a config's ``test_dataloader``, on the CPU.

    Raises:
        UserError: If there is none, or its data are not there or cannot be read.
    """
    if loader is None:
        raise UserError('the config has no test_dataloader')
    with blame('test_dataloader cannot be built'):
        batches = Runner.build_dataloader(dict(loader), seed=0)
    with blame('test_dataloader cannot be read'):
        for batch in batches:
            batch = model.data_preprocessor(batch, training=False)
            labels = torch.cat([sample.gt_label for sample in batch['data_samples']])
            yield batch['inputs'].cpu(), labels.cpu()
