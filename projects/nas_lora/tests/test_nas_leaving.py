"""A merged encoder leaves: every file computes what the merged model does."""

import json
from pathlib import Path

import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from nas_lora.images.shapes import write_shapes
from nas_lora.merging.leaving import leave
from nas_lora.merging.take_away import take_away
from nas_lora.registry import MODELS
from nas_lora.vits.adapt import AdaptedModel
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_encoder import ENCODER, wake

from tas_lora.errors import UserError
from tas_lora.export import onnx
from tas_lora.models.plain_vit import load_plain_vit

SIDE, CLASSES = 32, 5
MEAN = dict(mean=[120.0, 110.0, 100.0], std=[60.0, 50.0, 55.0])
DECODER = dict(type='nas_lora.MaskDecoder', embed_dim=32, num_heads=2, mlp_dim=32)


def encoder(out: str) -> dict:
    vit = timm.create_model('vit_tiny_patch16_224', img_size=SIDE, patch_size=8, num_classes=0)
    return dict(type='nas_lora.ViTEncoder', source=vit, out=out)


def segmentor(encoder: dict, kind: str = 'Segmentor', **decoder) -> dict:
    data = dict(type='mmengine.ImgDataPreprocessor', bgr_to_rgb=True, **MEAN)
    parts = dict(encoder=encoder, decoder=DECODER | decoder, data_preprocessor=data)
    return dict(type=f'nas_lora.{kind}', **parts)


def classifier(out: str) -> dict:
    head = dict(type='mmpretrain.LinearClsHead', num_classes=CLASSES, in_channels=192)
    data = dict(type='mmpretrain.ClsDataPreprocessor', to_rgb=True, **MEAN)
    parts = dict(backbone=encoder(out), head=head, data_preprocessor=data)
    return dict(type='mmpretrain.ImageClassifier', **parts)


def merged(model: dict, data: Path, part: str = 'encoder'):
    """An adapted model after an exact merge, and its config."""
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    adapter = dict(type='nas_lora.NASLoRALinear', operations=['none', 'skip_connect'])
    adapted = AdaptedModel(MODELS.build(model), part, adapter)
    wake(adapted)
    resize = dict(type='Resize', scale=(SIDE, SIDE), backend='pillow', interpolation='bicubic')
    steps = [dict(type='LoadImageFromFile'), resize, dict(type='PackInputs')]
    dataset = dict(type='CustomDataset', data_prefix=str(data), pipeline=steps, with_label=False)
    loader = dict(batch_size=2, num_workers=0, dataset=dataset)
    loader['sampler'] = dict(type='DefaultSampler', shuffle=False)
    own = dict(type='nas_lora.AdaptedModel', model=model, part=part)
    evaluator = dict(type='Accuracy')
    cfg = Config(dict(model=own, test_dataloader=loader, test_evaluator=evaluator))
    return take_away(adapted, 'exact')[0], cfg


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('data')
    write_shapes(folder, dict(test=4))
    return folder / 'test'


def close(found, expected) -> bool:
    return float((found - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


def timm_model(path: Path):
    with safe_open(path, 'pt') as file:
        known = json.loads(file.metadata()['timm'])
    model = timm.create_model(**known, patch_size=8)
    model.load_state_dict(load_file(path))  # strictly
    return model.eval()


@pytest.mark.full
@torch.no_grad()
def test_a_map_leaves_as_features_and_by_timms_names(data, tmp_path):
    model, cfg = merged(segmentor(encoder('map'), in_channels=192), data)
    said = []
    leave(model, cfg, ['onnx', 'mmpretrain'], tmp_path, said.append)
    images = torch.randn(3, 3, SIDE, SIDE)
    expected = model.model.encoder(images)[-1]
    (found,) = onnx.run(tmp_path, [images], 'features.onnx')
    assert close(found, expected)
    tokens = timm_model(tmp_path / 'timm.safetensors').forward_features(images)
    assert close(tokens[:, 1:].transpose(1, 2).reshape(expected.shape), expected)
    network, description = load_plain_vit(tmp_path / 'export')
    assert close(network(images), tokens[:, 0])
    assert description['preprocess']['mean'] == MEAN['mean']
    assert description['preprocess']['channel_order'] == 'RGB'
    assert sum('Exported' in line for line in said) == 3, said


@pytest.mark.full
@pytest.mark.parametrize(('out', 'formats'), [('token', ['onnx', 'timm']), ('mean', ['onnx'])])
@torch.no_grad()
def test_a_classifier_leaves_with_its_head(data, tmp_path, out, formats):
    model, cfg = merged(classifier(out), data, 'backbone')
    said = []
    leave(model, cfg, formats, tmp_path, said.append)
    images = torch.randn(3, 3, SIDE, SIDE)
    expected = model.model.head(model.model.backbone(images))
    (found,) = onnx.run(tmp_path / 'export' / 'onnx', [images])
    assert close(found, expected)
    assert close(timm_model(tmp_path / 'timm.safetensors')(images), expected)
    assert not (tmp_path / 'features.onnx').exists()
    assert sum('Exported' in line for line in said) == 1 + len(formats), said


@pytest.mark.full
@torch.no_grad()
def test_a_vitsam_leaves_as_onnx_only(data, tmp_path):
    sam = segmentor(ENCODER | dict(img_size=64), 'SAMSegmentor')
    model, cfg = merged(sam, data)
    cfg.test_dataloader.dataset.pipeline[1].scale = (64, 64)
    leave(model, cfg, ['onnx'], tmp_path, lambda line: None)
    images = torch.randn(3, 3, 64, 64)
    (found,) = onnx.run(tmp_path, [images], 'features.onnx')
    assert close(found, model.model.encoder(images)[-1])
    with pytest.raises(UserError, match='a ViTSAM that is not of timm leaves as onnx and in'):
        leave(model, cfg, ['timm'], tmp_path)
