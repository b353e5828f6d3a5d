"""The first stage: the source as a supernet, with a head for the classes of the images."""

from pathlib import Path

import torch
from mmengine.runner import Runner

from .. import apis
from ..datasets.replay import check_readable, readable
from ..engine.slow_options import check_precision
from ..errors import UserError
from ..models import SupernetClassifier
from ..models.pretrained import convert, write_supernet
from ..structures import Subnet
from .configs import RUNTIME
from .limits import settled
from .progress import BACKWARD
from .work import Work

_IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)


def original(work: Work) -> tuple[list[Path], dict, str]:
    """Convert the source, and fine-tune it unless it has a head for these classes."""
    request, classes = work.request, work.images.classes
    torch.manual_seed(request.seed)  # a new head
    options = request.checkpoint, request.img_size
    model, model_config, _ = convert(request.source, *options)
    has_head = model.head is not None and model.head.num_classes == len(classes)
    own_head = has_head and not request.new_head
    if not own_head:
        model, model_config, _ = convert(request.source, *options, len(classes))
    limits = settled(request.limits, model, request.multiple)
    if request.amp:
        images = (1 + BACKWARD) * request.batch_size
        check_precision(model, torch.bfloat16, images, '--amp', 'leave it out, to train')
    _write_original(work, model, model_config, own_head)
    _check_images(work)
    found = dict(limits, own_head=own_head)
    weights, line = _test_head(work, model.backbone.arch) if own_head else _finetune(work)
    return [weights], found | dict(weights=str(weights)), line


def _write_original(
    work: Work, model: SupernetClassifier, model_config: dict, own_head: bool
) -> None:
    """Write the converted source, unless an earlier start has, and the configs."""
    request, images, folder = work.request, work.images, work.folder / 'original'
    work.ledger.write_config('original', '_base_/default_runtime.py', RUNTIME.read_text('utf-8'))
    if not work.ledger.has('original', folder / 'supernet.pth'):
        write_supernet(folder, request.source, model, model_config)
        work.ledger.note('original', [folder / 'supernet.py', folder / 'supernet.pth'])
    work.write(
        'original',
        'data',
        folder=str(images.root),
        classes=images.classes,
        has_val=images.has_val,
        held_out=images.held_out,
        img_size=model.image_spec['img_size'],
        batch_size=request.batch_size,
        workers=request.workers,
        flip=0.5 if request.flip else 0.0,
        **(_IMAGENET | model_config.get('data_preprocessor', {})),
    )
    weights, epochs = str(folder / 'supernet.pth'), request.tuned
    finetune = dict(finetune=not own_head, epochs=epochs, amp=request.amp)
    work.write('original', 'original', weights=weights, **finetune)


def _check_images(work: Work) -> None:
    """Read the images that later stages evaluate on: no unreadable one is found after hours."""
    cfg = work.load('original.py')
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        loader = dict(readable(loader), num_workers=work.request.workers)
        for batch in Runner.build_dataloader(loader, seed=work.request.seed):
            check_readable(batch)


def _finetune(work: Work) -> tuple[Path, str]:
    """Train the original with its new head; returns weights, and a line."""
    epochs = work.request.tuned
    apis.train(work.load('original.py'), True, work.count('original', 1 + BACKWARD))
    weights = work.folder / 'original' / f'epoch_{epochs}.pth'
    return weights, f'fine-tuned on {work.images.trained:,} images for {epochs} epochs'


def _test_head(work: Work, arch: Subnet) -> tuple[Path, str]:
    """Test the head that the source has, on held-out images; returns its weights, and a line.

    Raises:
        UserError: If it is at chance.
    """
    count, images = len(work.images.classes), work.images.held_out
    work.meter.plan('original', images)
    weights = work.folder / 'original' / 'supernet.pth'
    subnets = dict(original=arch)
    top1 = work.tested('original', 'original.py', weights, subnets, held_out=True)['original']
    chance = 1 / count
    if top1 / 100 <= chance + 2 * (chance * (1 - chance) / images) ** 0.5:
        raise UserError(
            f'the head of {work.request.source} is for {count} classes, as many as there are, but '
            f'it is at chance: {top1:.1f} % of {images:,} held-out images are right. It expects '
            'its classes in the order of the sorted folders: rename these, or give --new-head to '
            'fine-tune a new one; and another --out'
        )
    return weights, f'it has a head of {count}, and {top1:.1f} % of held-out images right'
