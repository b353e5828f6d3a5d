"""The network as config and checkpoint for MMPretrain: its classifier and head, our backbone."""

from copy import deepcopy
from pathlib import Path

import torch
from mmengine.config import Config
from safetensors.torch import load_file
from torch import Tensor

from ..models.checkpoint import from_plain
from ..models.export import PLAIN_STYLE
from ..models.preparation import bare_name, loads_grey, stored_order
from . import preprocess
from .data import innermost
from .examples import Examples
from .isolated_run import prepare_alone, run_alone
from .source import Source

CONFIG, CHECKPOINT = 'config.py', 'checkpoint.pth'
_LOAD = """
from mmpretrain import get_model
model = get_model(folder + '/config.py', pretrained=True)
net = lambda images: model(images, mode='tensor') if model.with_head else model(images)[-1]
"""
_GREY = (117 / 1024, 601 / 1024, 306 / 1024)  # BGR; ITU-R 601, with sums exact in floats
_PREPARE = """
from mmpretrain import ImageClassificationInferencer
inferencer = ImageClassificationInferencer(folder + '/config.py')
batches = (inferencer.preprocess([path]) for path in paths)
found = [inferencer.model.data_preprocessor(next(one))['inputs'][0] for one in batches]
"""
_TO_GREY = dict(type='RandomGrayscale', prob=1.0, channel_weights=_GREY)
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


def prepare(folder: Path, examples: Examples) -> Tensor:
    """Files as the inferencer prepares them, in a separate process."""
    return prepare_alone(_PREPARE, folder, examples.files, search=Path(__file__).parents[2])


def run(folder: Path, batches: list[Tensor]) -> list[Tensor]:
    """Logits of each batch of images, by ``mmpretrain.get_model`` in a separate process."""
    return run_alone(_LOAD, folder, batches, search=Path(__file__).parents[2])


def _config(source: Source) -> dict:
    network, parts = source.network, 2 if source.network['pooling'] == 'cls_avg' else 1
    style = {name: network[name] for name in PLAIN_STYLE if name in network}
    backbone = dict(
        type='tas_lora.ElasticViT',
        arch=source.description['subnet'],
        **{name: network[name] for name in _SPEC},
        **(dict(style=style) if style else {}),
        out_type=network['pooling'],
    )
    head = dict(
        type='LinearClsHead',
        num_classes=network['num_classes'],
        in_channels=parts * network['embed_dim'],
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    )
    if source.is_multi_label:
        head.update(type='MultiLabelLinearClsHead', thr=source.description['threshold'])
        head['loss']['use_sigmoid'] = True
    imports = source.data.get('custom_imports')
    data = dict(_data(source), test_cfg=dict())
    if not network['num_classes']:  # features, which no metric of classes can test
        head, data = None, dict(data_preprocessor=data['data_preprocessor'])
    return dict(
        **({} if imports is None else dict(custom_imports=imports)),
        default_scope='mmpretrain',
        model=dict(type='ImageClassifier', backbone=backbone, head=head),
        **data,
        load_from='{{ fileDirname }}/' + CHECKPOINT,
    )


def _data(source: Source) -> dict:
    """The supernet's test data, or else a folder of images whose path the user fills in."""
    given = source.data
    metric = dict(type='AveragePrecision' if source.is_multi_label else 'Accuracy')
    if given.get('test_dataloader') is not None:
        loader = deepcopy(dict(given['test_dataloader']))
        dataset = innermost(loader)
        dataset['pipeline'] = _for_inferencer(dataset.get('pipeline') or [])
        if 'data_preprocessor' in given:
            own = given['data_preprocessor'] or {}
        else:
            own = _preprocessor(source, stored_order(dataset))
        return dict(
            data_preprocessor=own,
            test_dataloader=loader,
            test_evaluator=given.get('test_evaluator') or metric,
        )
    dataset = dict(type='CustomDataset', data_root='data/test', pipeline=_pipeline(source))
    sampler = dict(type='DefaultSampler', shuffle=False)
    loader = dict(batch_size=64, num_workers=2, sampler=sampler, dataset=dataset)
    return dict(
        data_preprocessor=_preprocessor(source),
        test_dataloader=loader,
        test_evaluator=metric,
    )


def _preprocessor(source: Source, stored: str | None = 'BGR') -> dict:
    described = source.description['preprocess']
    normalises = described.get('mean') or described.get('std')
    mean, std = preprocess.normalisation(source) if normalises else (None, None)
    order = described.get('channel_order')
    reverses = order in ('RGB', 'BGR') and order != (stored or 'BGR')
    return dict(num_classes=source.network['num_classes'], mean=mean, std=std, to_rgb=reverses)


def _for_inferencer(pipeline: list[dict]) -> list[dict]:
    """A test pipeline that the inferencer also runs as it is meant.

    It loads images itself, in colour, in place of the step named 'LoadImageFromFile'. So a class
    gets that name, and images are made grey after resizing if the step loads grey; those that are
    grey already stay as they are.
    """
    loading = dict(type='LoadImageFromFile')
    pipeline = [
        dict(step) | loading if bare_name(step) == 'LoadImageFromFile' else step
        for step in pipeline
    ]
    if not any(map(loads_grey, pipeline)):
        return pipeline
    resizing = [i for i, step in enumerate(pipeline) if bare_name(step) in ('Resize', 'ResizeEdge')]
    place = resizing[0] + 1 if resizing else len(pipeline) - 1
    return [*pipeline[:place], _TO_GREY, *pipeline[place:]]


def _pipeline(source: Source) -> list[dict]:
    """Steps for image files; converts to grey for networks of one channel."""
    preprocess.check_known(source)
    side, edge = source.network['img_size'], preprocess.resized_edge(source)
    described = source.description['preprocess']
    method = dict(
        backend=described.get('backend', 'pillow'), interpolation=preprocess.interpolation(source)
    )
    steps, last = [dict(type='ResizeEdge', scale=edge, edge='short', **method)], []
    if described.get('pad_value') is not None:
        steps = [dict(type='Resize', scale=(side, side), keep_ratio=True, **method)]
        last = [dict(type='Pad', size=(side, side), pad_val=described['pad_value'])]
    elif preprocess.is_squashed(source):
        steps = [dict(type='Resize', scale=(edge, edge), **method)]
    if source.network['in_channels'] == 1 or described.get('color') == 'grey':
        steps.append(_TO_GREY)  # the inferencer reads every file as colour
    crop = dict(type='CenterCrop', crop_size=side)
    return [dict(type='LoadImageFromFile'), *steps, *(last or [crop]), dict(type='PackInputs')]
