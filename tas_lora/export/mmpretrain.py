"""The network as config and checkpoint for MMPretrain: its classifier and head, our backbone."""

from pathlib import Path

import torch
from mmengine.config import Config
from safetensors.torch import load_file
from torch import Tensor

from ..models.checkpoint import from_plain
from ..models.export import stored_order
from . import preprocess
from .data import innermost
from .isolated_run import run_alone
from .source import Source

CONFIG, CHECKPOINT = 'config.py', 'checkpoint.pth'
_LOAD = """
from mmpretrain import get_model
model = get_model(folder + '/config.py', pretrained=True)
net = lambda images: model(images, mode='tensor')
"""
_GREY = (0.125, 0.5625, 0.3125)  # BGR; near ITU-R 601, and exact in floats
_SPEC = ('img_size', 'patch_size', 'in_channels', 'head_dim', 'max_relative_position')


def write(source: Source, folder: Path) -> None:
    """Write ``config.py`` and ``checkpoint.pth``; the config refers to the file next to it.

    MMPretrain finds our backbone by its name, ``tas_lora.ElasticViT``. The toolkit must be
    installed, but need not be imported.
    """
    classes = source.description.get('classes')
    meta = {} if classes is None else dict(dataset_meta=dict(classes=classes))
    state = from_plain(load_file(source.folder / 'weights.safetensors'))
    torch.save(dict(state_dict=state, meta=meta), folder / CHECKPOINT)
    Config(_config(source)).dump(folder / CONFIG)


def run(folder: Path, batches: list[Tensor]) -> list[Tensor]:
    """Logits of each batch of images, by ``mmpretrain.get_model`` in a separate process."""
    return run_alone(_LOAD, folder, batches, search=Path(__file__).parents[2])


def _config(source: Source) -> dict:
    network, described = source.network, source.description['preprocess']
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
    normalises = described.get('mean') or described.get('std')
    mean, std = preprocess.normalisation(source) if normalises else (None, None)
    imports = source.data.get('custom_imports')
    data = _data(source)
    order, stored = described.get('channel_order'), stored_order(innermost(data['test_dataloader']))
    return dict(
        **({} if imports is None else dict(custom_imports=imports)),
        default_scope='mmpretrain',
        model=dict(type='ImageClassifier', backbone=backbone, head=head),
        data_preprocessor=dict(
            num_classes=network['num_classes'],
            mean=mean,
            std=std,
            to_rgb=order in ('RGB', 'BGR') and order != (stored or 'BGR'),  # reverses channels
        ),
        **data,
        test_cfg=dict(),
        load_from='{{ fileDirname }}/' + CHECKPOINT,
    )


def _data(source: Source) -> dict:
    """The supernet's test data, or else a folder of images whose path the user fills in."""
    given = source.data
    if given.get('test_dataloader') is not None:
        evaluator = given.get('test_evaluator') or dict(type='Accuracy')
        return dict(test_dataloader=given['test_dataloader'], test_evaluator=evaluator)
    dataset = dict(type='CustomDataset', data_root='data/test', pipeline=_pipeline(source))
    sampler = dict(type='DefaultSampler', shuffle=False)
    loader = dict(batch_size=64, num_workers=2, sampler=sampler, dataset=dataset)
    return dict(test_dataloader=loader, test_evaluator=dict(type='Accuracy'))


def _pipeline(source: Source) -> list[dict]:
    """Steps for image files; converts to grey for networks of one channel."""
    side, edge = source.network['img_size'], preprocess.resized_edge(source)
    method = dict(backend='pillow', interpolation=preprocess.interpolation(source))
    if edge is None:
        steps = [dict(type='Resize', scale=(side, side), **method)]
    else:
        steps = [dict(type='ResizeEdge', scale=edge, edge='short', **method)]
    if source.network['in_channels'] == 1:  # the inferencer reads every file as colour
        steps.append(dict(type='RandomGrayscale', prob=1.0, channel_weights=_GREY))
    steps.append(dict(type='CenterCrop', crop_size=side))
    return [dict(type='LoadImageFromFile'), *steps, dict(type='PackInputs')]
