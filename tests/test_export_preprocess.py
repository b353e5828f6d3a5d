"""How images are prepared: each exported form, by its own stack, against the supernet's test."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import onnx
import pytest
import torch
from conftest import call_tool
from hypothesis import given
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.dataset import Compose
from mmpretrain import ImageClassificationInferencer
from mmpretrain.registry import TRANSFORMS
from PIL import Image
from test_export import trained_like
from tiny import IMAGE, SPACE, repeatable, tiny_model

from tas_lora import UserError, export_subnet
from tas_lora.export import Source, export_formats, find_formats, mmpretrain, preprocess
from tas_lora.models.plain_vit import load_plain_vit

FORMS = ['timm', 'huggingface', 'mmpretrain']
TOLERANCES = {'huggingface': 1e-3, 'huggingface, as colour': 1e-3}  # it rounds elsewhere
SIZES = [(8, 8), (14, 10), (24, 40), (64, 32)]  # width, height; crops begin at whole pixels
PILLOW = dict(backend='pillow', interpolation='bilinear')
CROPPED = (
    dict(type='ResizeEdge', scale=10, edge='short', **PILLOW),
    dict(type='CenterCrop', crop_size=8),
)
SQUEEZED = (dict(type='Resize', scale=8, **PILLOW),)
NORMAL = dict(mean=[120.0, 110.0, 100.0], std=[60.0, 50.0, 40.0])


def dataset_of(*steps: dict, color: str = 'color', **more) -> dict:
    loading = dict(type='LoadImageFromFile', color_type=color)
    pipeline = [loading, *steps, dict(type='PackInputs')]
    return dict(type='CustomDataset', data_root='none', pipeline=pipeline) | more


def supernet_of(channels: int, data: dict):
    backbone = dict(type='tas_lora.ElasticViT', arch=SPACE.largest().to_dict(), init_std=0.2)
    backbone |= IMAGE | dict(in_channels=channels, mole=dict(num_experts=8, rank=2))
    data = dict(type='mmpretrain.ClsDataPreprocessor', **data)
    model = trained_like(tiny_model(backbone=backbone, data_preprocessor=data))
    if 'mean' not in data:  # values are large, and would drown all else
        model.backbone.patch_embed.weight.data /= 20
    model.head.fc.weight.data *= 40  # or all classes would be as likely
    model.set_subnet(SPACE.smallest())
    return model


def draw(folder, channels: int) -> list[str]:
    rng, paths = np.random.default_rng(0), []
    for i, (width, height) in enumerate(SIZES):
        coarse = rng.integers(0, 256, (4, 6, channels), np.uint8)
        image = Image.fromarray(coarse if channels == 3 else coarse[..., 0])
        paths.append(str(folder / f'{i}.png'))
        image.resize((width, height), Image.BICUBIC).save(paths[-1])
    return paths


def by_supernet(model, dataset: dict, paths: list[str]) -> torch.Tensor:
    """Probabilities, by its own pipeline and preprocessor."""
    steps = [step | dict(type='mmpretrain.' + step['type']) for step in dataset['pipeline']]
    pipeline = Compose([TRANSFORMS.build(step) for step in steps])
    inputs = [pipeline(dict(img_path=path))['inputs'] for path in paths]
    with torch.no_grad():
        images = model.data_preprocessor(dict(inputs=inputs))['inputs']
        return model(images, mode='tensor').softmax(dim=1)


STRANGER = """
import json, os, sys, torch
from pathlib import Path
from PIL import Image
home, *folders = sys.argv[1:]
os.environ.update(HF_HOME=home, HF_HUB_OFFLINE='1')
import timm
from transformers import AutoImageProcessor, AutoModelForImageClassification
sys.path.insert(0, folders[0] + '/timm')
import tas_lora_vit

def seen(folder, images):
    model = timm.create_model('tas_lora_vit', pretrained=True, folder=folder + '/timm').eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    yield 'timm', torch.cat([model(transform(image)[None]) for image in images])
    own = dict(trust_remote_code=True)
    processor = AutoImageProcessor.from_pretrained(folder + '/huggingface', **own)
    model = AutoModelForImageClassification.from_pretrained(folder + '/huggingface', **own)
    for name, each in (('huggingface', images), ('huggingface, as colour',
                       [image.convert('RGB') for image in images])):
        inputs = [processor(image, return_tensors='pt') for image in each]
        yield name, torch.cat([model(**one).logits for one in inputs])

found = []
for folder in folders:
    images = [Image.open(path) for path in sorted(Path(folder).glob('*.png'))]
    found.append({name: logits.softmax(1).tolist() for name, logits in seen(folder, images)})
print(json.dumps(found))
"""
CASES = {
    'RGB': (NORMAL | dict(to_rgb=True), CROPPED),
    'BGR': (NORMAL | dict(to_rgb=False), CROPPED),
    'squeezed': (NORMAL | dict(to_rgb=False), SQUEEZED),
    'no mean': (dict(to_rgb=True), SQUEEZED),
    'one mean': (dict(to_rgb=True, mean=[120.0], std=[60.0]), CROPPED),
    'grey': (dict(mean=[120.0], std=[60.0]), CROPPED),
}
WITH_CONFIG = ('RGB', 'squeezed')  # of the supernet's test


@pytest.fixture(scope='module')
def seen(tmp_path_factory) -> dict[str, dict[str, torch.Tensor]]:
    """Probabilities by supernet, timm, transformers, MMPretrain and our tool, for each case."""
    root, found = tmp_path_factory.mktemp('cases'), {}
    for case, (data, steps) in CASES.items():
        channels, folder = 1 if case == 'grey' else 3, root / case.replace(' ', '_')
        folder.mkdir()
        color = 'grayscale' if case == 'grey' else 'color'
        model, dataset = supernet_of(channels, data), dataset_of(*steps, color=color)
        paths = draw(folder, channels)
        export_subnet(model, SPACE.smallest(), folder, dataset=dataset)
        given = dict(test_dataloader=dict(dataset=dataset)) if case in WITH_CONFIG else {}
        source = Source.read(folder, data=given)
        for form in find_formats(FORMS)[0]:
            (folder / form.name).mkdir()
            form.write(source, folder / form.name)
        found[case] = dict(
            supernet=by_supernet(model, dataset, paths), **by_openmmlab(model, folder, paths)
        )
        found[case]['predict.py'] = by_our_tool(folder, paths)
    folders = [str(root / case.replace(' ', '_')) for case in CASES]
    done = subprocess.run(
        [sys.executable, '-c', STRANGER, str(root / 'home'), *folders],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for case, by_name in zip(CASES, json.loads(done.stdout), strict=True):
        found[case] |= {name: torch.tensor(values) for name, values in by_name.items()}
    return found


def by_openmmlab(model, folder, paths: list[str]) -> dict[str, torch.Tensor]:
    """By the inferencer and by the pipeline it is given."""
    path = folder / 'mmpretrain' / 'config.py'
    pipeline = Config.fromfile(path).test_dataloader.dataset.pipeline
    found = dict(pipeline=by_supernet(model, dict(pipeline=pipeline), paths))
    inferencer = ImageClassificationInferencer(str(path), device='cpu')
    arrays = [cv2.imread(path, cv2.IMREAD_UNCHANGED) for path in paths]
    for name, inputs in dict(mmpretrain=paths, arrays=arrays).items():
        scores = [result['pred_scores'] for result in inferencer(inputs)]
        found[name] = torch.from_numpy(np.stack(scores))
    return found


def by_our_tool(folder, paths: list[str]) -> torch.Tensor:
    out = folder / 'predicted.json'
    assert call_tool('predict.py', folder, *paths, '--top', 9, '--out', out) == 0
    results = [result['predictions'] for result in json.loads(out.read_text())]
    ordered = [sorted(result, key=lambda found: found['class_index']) for result in results]
    return torch.tensor([[one['probability'] for one in each] for each in ordered])


@pytest.mark.full
@pytest.mark.parametrize('case', CASES)
def test_files_are_seen_as_by_the_supernet(seen, case):
    expected, others = seen[case]['supernet'], dict(seen[case])
    assert expected.std(dim=0).max() > 0.05  # what is shown matters
    assert len(others) == 8
    for name, probabilities in others.items():
        tolerance = TOLERANCES.get(name, 1e-5)
        torch.testing.assert_close(probabilities, expected, atol=tolerance, rtol=0, msg=name)


@pytest.mark.full
def test_a_network_of_bgr_is_compared_by_channels_turned_round(tmp_path):
    model = supernet_of(3, NORMAL | dict(to_rgb=False))
    folder = export_subnet(model, SPACE.smallest(), tmp_path / 'source', dataset=dataset_of())
    source = Source.read(folder)
    assert source.description['preprocess']['channel_order'] == 'BGR'
    weights, mean, std, is_reversed = preprocess.in_rgb(source)
    assert is_reversed
    images = torch.rand(4, 3, 8, 8)
    ours, theirs = (torch.tensor(NORMAL[name]).view(3, 1, 1) for name in ('mean', 'std'))
    with torch.no_grad():
        expected = source.net((255 * images.flip(1) - ours) / theirs)
        source.net.load_state_dict(weights)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
        torch.testing.assert_close(source.net((images - mean) / std), expected)
    forms = find_formats(['timm', 'huggingface'])[0]
    for outcome in export_formats(model, Source.read(folder), forms, tmp_path):
        assert outcome.held, str(outcome)


def test_a_form_that_is_fed_rgb_needs_the_order(tmp_path):
    model = supernet_of(3, NORMAL | dict(to_rgb=False))
    source = Source.read(export_subnet(model, SPACE.smallest(), tmp_path / 'source'))
    assert source.description['preprocess']['channel_order'] == 'as loaded'
    for name in ('timm', 'huggingface'):
        with pytest.raises(UserError, match="'as loaded', but this format needs RGB"):
            find_formats([name])[0][0].write(source, tmp_path)


# What a test pipeline says

BICUBIC = dict(backend='pillow', interpolation='bicubic')


@pytest.mark.parametrize(
    ('dataset', 'to_rgb', 'expected'),
    [
        (dataset_of(*CROPPED), True, dict(channel_order='RGB', crop_ratio=0.8)),
        (dataset_of(*CROPPED), False, dict(channel_order='BGR', crop_ratio=0.8)),
        (dataset_of(*SQUEEZED), False, dict(channel_order='BGR', crop_ratio=None)),
        (dataset_of(dict(type='mmpretrain.ResizeEdge', scale=8)), True, dict(crop_ratio=1.0)),
        (
            dataset_of(dict(type='Resize', scale=(8, 8), **BICUBIC)),
            True,
            dict(interpolation='bicubic'),
        ),
        (dict(type='mmpretrain.CIFAR10'), False, dict(channel_order='RGB')),
        (dict(type='CIFAR100'), True, dict(channel_order='BGR')),
        (dict(type='MNIST'), False, dict(channel_order='as loaded')),
        (None, True, dict(channel_order='RGB')),
    ],
)
def test_a_pipeline_says_how_images_are_prepared(tmp_path, dataset, to_rgb, expected):
    model = supernet_of(3, NORMAL | dict(to_rgb=to_rgb))
    export_subnet(model, SPACE.smallest(), tmp_path, dataset=dataset)
    found = load_plain_vit(tmp_path)[1]['preprocess']
    assert found | expected == found


@pytest.mark.parametrize(
    'steps',
    [
        (),
        (dict(type='CenterCrop', crop_size=8),),
        (dict(type='CenterCrop', crop_size=8), dict(type='ResizeEdge', scale=10)),
        (dict(type='ResizeEdge', scale=10, edge='long'), dict(type='CenterCrop', crop_size=8)),
        (dict(type='ResizeEdge', scale=10), dict(type='CenterCrop', crop_size=6)),
        (dict(type='ResizeEdge', scale=100), dict(type='CenterCrop', crop_size=8)),
        (dict(type='Resize', scale=(8, 9)),),
        (dict(type='Resize', scale=8, keep_ratio=True),),
        (dict(type='RandomFlip', prob=1.0), *CROPPED),
    ],
)
def test_what_cannot_be_told_is_left_open(tmp_path, steps):
    model = supernet_of(3, NORMAL)
    export_subnet(model, SPACE.smallest(), tmp_path, dataset=dataset_of(*steps))
    found = load_plain_vit(tmp_path)[1]['preprocess']
    assert set(found) == {'mean', 'std', 'channel_order'}


@repeatable
@given(st.integers(8, 512), st.floats(0.1, 1))
def test_timm_resizes_to_the_same_edge(side, ratio):
    """Its transforms resize to ``floor(side / crop_pct)``."""
    described = dict(crop_ratio=ratio)
    source = Source(None, None, dict(network=dict(img_size=side), preprocess=described))
    edge = round(side / ratio)
    assert preprocess.resized_edge(source) == edge
    assert math.floor(side / preprocess.crop_share(source)) == edge


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(channel_order='GBR'), "preprocess.channel_order must be 'RGB' or 'BGR' or 'as loade"),
        (dict(crop_ratio=0), 'preprocess.crop_ratio must be None or a number from 0.1 to 1, got 0'),
        (dict(crop_ratio='1'), 'preprocess.crop_ratio must be None or a number'),
        (dict(interpolation='area'), "preprocess.interpolation must be 'nearest' or"),
        (dict(interpolation=['box']), 'preprocess.interpolation must be'),
    ],
)
def test_a_description_edited_by_hand(tmp_path, change, message):
    export_subnet(tiny_model(), SPACE.smallest(), tmp_path)
    path = tmp_path / 'architecture.json'
    description = json.loads(path.read_text())
    assert 'crop_ratio' not in description['preprocess']  # as in files of older versions
    load_plain_vit(tmp_path)
    description['preprocess'] |= change
    path.write_text(json.dumps(description))
    with pytest.raises(ValueError, match=message):
        load_plain_vit(tmp_path)


@pytest.mark.full
def test_files_of_single_formats_say_how_images_are_prepared(tmp_path):
    model = supernet_of(3, NORMAL | dict(to_rgb=False))
    names = list('abcde')
    folder = export_subnet(
        model, SPACE.smallest(), tmp_path / 'source', names, dataset_of(*CROPPED)
    )
    source = Source.read(folder)
    for form in find_formats(['onnx', 'torch_export'])[0]:
        form.write(source, tmp_path)
    properties = onnx.load(tmp_path / 'model.onnx').metadata_props
    found = {entry.key: entry.value for entry in properties}
    assert found['channel_order'] == 'BGR'
    assert found['interpolation'] == 'bilinear'
    assert found['weights_sha256'] == source.description['weights_sha256']
    assert json.loads(found['classes']) == names
    assert json.loads(found['mean']) == NORMAL['mean']
    assert json.loads(found['std']) == NORMAL['std']
    assert json.loads(found['crop_ratio']) == 0.8
    extra = {'architecture.json': ''}
    torch.export.load(tmp_path / 'model.pt2', extra_files=extra)
    assert json.loads(extra['architecture.json']) == source.description


def test_mmpretrain_keeps_the_imports_of_the_config(tmp_path):
    source = Source.read(export_subnet(tiny_model(), SPACE.smallest(), tmp_path / 'source'))
    imports = dict(imports=['json'], allow_failed_imports=False)
    source = replace(source, data=dict(custom_imports=imports))
    mmpretrain.write(source, tmp_path)
    assert Config.fromfile(tmp_path / 'config.py').custom_imports == imports
