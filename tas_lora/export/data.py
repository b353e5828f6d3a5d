"""What a config says of its data: class names, and labelled test images."""

from collections.abc import Iterator, Mapping

import torch
from mmengine.runner import Runner
from mmpretrain.registry import DATASETS
from torch import Tensor

from ..datasets.agreement import check_folders, check_same_classes, trained_classes
from ..datasets.sources import sources
from ..errors import UserError, blame
from ..models import SupernetClassifier


def innermost(loader: Mapping | None) -> Mapping:
    """Config of the first innermost dataset of a dataloader; empty if there is none."""
    return next((source.config for source in sources(loader, '')), {})


def class_names(checkpoint: object, loader: Mapping | None, count: int) -> list[str] | None:
    """Class names recorded by the training, or else those that the dataset declares.

    Reads no image: for a folder of images that is not there, only the training knows the names. A
    list of other than ``count`` names belongs to other data.

    Raises:
        UserError: If the training knows other names than the dataset declares, or these are not
            the names of its folders.
    """
    dataset = innermost(loader)
    kind = dataset.get('type')
    kind = DATASETS.get(kind) if isinstance(kind, str) else kind
    of_class = getattr(kind, 'METAINFO', {})
    declared = dict(of_class) | dict(dataset.get('metainfo') or {})
    trained = trained_classes(checkpoint)
    found = check_folders(loader, 'test_dataloader')
    for names in (declared.get('classes'), found if 'classes' not in declared else None):
        if len(names or ()) == len(trained.get('classes') or ()) == count:  # others are not used
            check_same_classes('the checkpoint', trained, 'test_dataloader', dict(classes=names))
    for meta in (trained, declared):
        names = meta.get('classes')
        if isinstance(names, (list, tuple)) and len(names) == count:
            return list(map(str, names))
    return None


@torch.no_grad()
def labelled_batches(
    model: SupernetClassifier, loader: Mapping | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of normalised images and labels from ``test_dataloader``, on the CPU.

    Raises:
        UserError: If there is no dataloader, its data are missing or unreadable, or an image has
            several labels.
    """
    if model.is_multi_label:
        raise UserError('images have several labels, so there is no top-1')
    if loader is None:
        raise UserError('the config has no test_dataloader')
    with blame('test_dataloader cannot be built'):
        batches = Runner.build_dataloader(dict(loader), seed=0)
    with blame('test_dataloader cannot be read'):
        for batch in batches:
            batch = model.data_preprocessor(batch, training=False)
            labels = torch.cat([sample.gt_label for sample in batch['data_samples']])
            yield batch['inputs'].cpu(), labels.cpu()
