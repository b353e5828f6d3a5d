"""The network as config and checkpoint of MMPretrain: its classifier and head, our backbone."""

from collections.abc import Mapping
from pathlib import Path

import torch
from mmengine.config import Config
from safetensors.torch import load_file
from torch import Tensor

from ..models.transfer import from_plain
from .alone import run_alone
from .source import Source

CONFIG, CHECKPOINT = 'config.py', 'checkpoint.pth'
_LOAD = """
from mmpretrain import get_model
model = get_model(folder + '/config.py', pretrained=True)
net = lambda images: model(images, mode='tensor')
"""
_SPEC = ('img_size', 'patch_size', 'in_channels', 'head_dim', 'max_relative_position')


def write(source: Source, folder: Path) -> None:
    """Write ``config.py`` and ``checkpoint.pth``, which it names by the folder it is in.

    MMPretrain finds our backbone by its name, ``tas_lora.ElasticViT``: the toolkit has to be
    installed, and nothing of it imported.
    """
    classes = source.description.get('classes')
    meta = {} if classes is None else dict(dataset_meta=dict(classes=classes))
    state = from_plain(load_file(source.folder / 'weights.safetensors'))
    torch.save(dict(state_dict=state, meta=meta), folder / CHECKPOINT)
    Config(_config(source)).dump(folder / CONFIG)


def run(folder: Path, batches: list[Tensor]) -> list[Tensor]:
    """Logits of batches of images, by ``mmpretrain.get_model`` in a process of its own."""
    return run_alone(_LOAD, folder, batches, search=Path(__file__).parents[2])


def _config(source: Source) -> dict:
    network, preprocess = source.network, source.description['preprocess']
    backbone = dict(
        type='tas_lora.ElasticViT',
        arch=source.description['subnet'],
        **{name: network[name] for name in _SPEC},
        out_type=network['pooling'],
    )
    head = dict(
        type='LinearClsHead',
        num_classes=network['num_classes'],
        in_channels=network['embed_dim'],
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    )
    normalisation = {name: preprocess[name] for name in ('mean', 'std') if preprocess[name]}
    return dict(
        default_scope='mmpretrain',
        model=dict(type='ImageClassifier', backbone=backbone, head=head),
        data_preprocessor=dict(
            num_classes=network['num_classes'],
            **normalisation,
            to_rgb=preprocess['channel_order'] == 'RGB',
        ),
        **_data(source.data, network['img_size']),
        test_cfg=dict(),
        load_from='{{ fileDirname }}/' + CHECKPOINT,
    )


def _data(given: Mapping, side: int) -> dict:
    """The data of the supernet's test, or else a folder of images to put a path to."""
    if given.get('test_dataloader') is not None:
        evaluator = given.get('test_evaluator') or dict(type='Accuracy')
        return dict(test_dataloader=given['test_dataloader'], test_evaluator=evaluator)
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=(side, side), backend='pillow', interpolation='bicubic'),
        dict(type='PackInputs'),
    ]
    dataset = dict(type='CustomDataset', data_root='data/test', pipeline=pipeline)
    sampler = dict(type='DefaultSampler', shuffle=False)
    loader = dict(batch_size=64, num_workers=2, sampler=sampler, dataset=dataset)
    return dict(test_dataloader=loader, test_evaluator=dict(type='Accuracy'))
