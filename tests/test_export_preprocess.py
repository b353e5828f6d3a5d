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
from mmcv import transforms
from mmengine.config import Config
from mmengine.dataset import Compose
from mmpretrain import ImageClassificationInferencer
from mmpretrain.datasets import transforms as mmpretrain_steps
from mmpretrain.registry import TRANSFORMS
from PIL import Image
from test_export import trained_like
from tiny import IMAGE, SPACE, repeatable, tiny_model

from tas_lora import UserError, export_subnet
from tas_lora.export import Source, export_formats, find_formats, mmpretrain, preprocess
from tas_lora.export.examples import take_examples
from tas_lora.export.isolated_run import prepare_alone
from tas_lora.models.plain_vit import load_plain_vit

FORMS = ['timm', 'huggingface', 'mmpretrain']
SIZES = [(8, 8), (14, 10), (15, 10), (24, 40), (64, 32)]  # width, height
PILLOW = dict(backend='pillow', interpolation='bilinear')
CROPPED = (
    dict(type='ResizeEdge', scale=10, edge='short', **PILLOW),
    dict(type='CenterCrop', crop_size=8),
)
SQUEEZED = (dict(type='Resize', scale=8, **PILLOW),)
PADDED = (
    dict(type='Resize', scale=(8, 8), keep_ratio=True, **PILLOW),
    dict(type='Pad', size=(8, 8), pad_val=90),
)
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
    scopes = dict(Pad='mmcv.')  # MMPretrain does not register it again
    pipeline = Compose(
        [
            TRANSFORMS.build(
                step | dict(type=scopes.get(step['type'], 'mmpretrain.') + step['type'])
            )
            for step in dataset['pipeline']
        ]
    )
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
    own = dict(trust_remote_code=True)
    processor = AutoImageProcessor.from_pretrained(folder + '/huggingface', **own)
    model = AutoModelForImageClassification.from_pretrained(folder + '/huggingface', **own)
    for name, each in (('huggingface', images), ('huggingface, as colour',
                       [image.convert('RGB') for image in images])):
        inputs = [processor(image, return_tensors='pt') for image in each]
        yield name, torch.cat([model(**one).logits for one in inputs])
    if Path(folder, 'timm').exists():
        model = timm.create_model('tas_lora_vit', pretrained=True, folder=folder + '/timm').eval()
        transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
        yield 'timm', torch.cat([model(transform(image)[None]) for image in images])

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
    'padded': (NORMAL | dict(to_rgb=False), PADDED),
}
WITHOUT_TIMM = ('padded',)
WITH_CONFIG = ('RGB', 'squeezed', 'padded')  # of the supernet's test


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
            if form.name == 'timm' and case in WITHOUT_TIMM:
                continue
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
    assert len(others) == 8 - (case in WITHOUT_TIMM)
    for name, probabilities in others.items():
        torch.testing.assert_close(probabilities, expected, atol=1e-5, rtol=0, msg=name)


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
    ('steps', 'named'),
    [
        ([dict(type='CenterCrop', crop_size=8)], 'the steps crop in this order'),
        (CROPPED[::-1], 'the steps crop short in this order'),
        (
            [dict(type='ResizeEdge', scale=10, edge='long'), CROPPED[1]],
            "ResizeEdge(scale=10, edge='long')",
        ),
        ([CROPPED[0], dict(type='CenterCrop', crop_size=6)], 'CenterCrop(crop_size=6)'),
        ([dict(type='ResizeEdge', scale=100), CROPPED[1]], 'ResizeEdge(scale=100)'),
        ([dict(type='Resize', scale=(8, 9))], 'Resize(scale=(8, 9))'),
        ([dict(type='Resize', scale=8, keep_ratio=True)], 'the steps fit in this order'),
        ([dict(type='ResizeEdge', scale=8, interpolation='area')], 'ResizeEdge(scale=8, interp'),
        ([PADDED[0], dict(type='Pad', size_divisor=8)], 'Pad(size_divisor=8)'),
        ([dict(type='RandomFlip', prob=1.0), *CROPPED], 'RandomFlip(prob=1.0)'),
        ([dict(type='torchvision/Resize', size=8, max_size=9)], 'torchvision/Resize(size=8, max'),
    ],
)
def test_what_cannot_be_told_is_named(tmp_path, steps, named):
    model, dataset = supernet_of(3, NORMAL | dict(to_rgb=True)), dataset_of(*steps)
    export_subnet(model, SPACE.smallest(), tmp_path, dataset=dataset)
    found = load_plain_vit(tmp_path)[1]['preprocess']
    assert set(found) == {'mean', 'std', 'channel_order', 'unknown_steps'}
    (step,) = found['unknown_steps']
    assert step.startswith(named)
    for name in ('timm', 'huggingface'):
        with pytest.raises(UserError, match='which this format cannot say; change the step'):
            find_formats([name])[0][0].write(Source.read(tmp_path), tmp_path)


def test_a_preparation_that_is_unknown_is_refused(tmp_path, capsys):
    dataset = dataset_of(dict(type='RandomFlip', prob=1.0), *CROPPED)
    export_subnet(supernet_of(3, NORMAL), SPACE.smallest(), tmp_path, dataset=dataset)
    (path, *_) = draw(tmp_path, 3)
    options = (tmp_path, path, '--channel-order', 'RGB')
    assert call_tool('predict.py', *options) == 2
    assert 'prepares images by RandomFlip(prob=1.0), which' in capsys.readouterr().err
    assert call_tool('predict.py', *options, '--crop-ratio', 0.8) == 0


class CenterCrop(transforms.CenterCrop):
    """A transform of another project, by a known name."""


def test_a_step_of_another_project_is_not_taken_for_one_that_is_known(tmp_path):
    steps = (CROPPED[0], dict(type=CenterCrop, crop_size=8))
    export_subnet(supernet_of(3, NORMAL), SPACE.smallest(), tmp_path, dataset=dataset_of(*steps))
    (step,) = load_plain_vit(tmp_path)[1]['preprocess']['unknown_steps']
    assert step == 'test_export_preprocess.CenterCrop(crop_size=8)'


# The description against the pipeline itself, on images

BY_TORCHVISION = (
    dict(type='NumpyToPIL', to_rgb=True),
    dict(type='torchvision/Resize', size=10),
    dict(type='torchvision/CenterCrop', size=8),
)
NORMALIZE = dict(type='mmcv.Normalize', to_rgb=True, **NORMAL)
TOLD = {
    'a step that normalises': (dict(), [*CROPPED, NORMALIZE]),
    'both normalise, and turn channels round': (NORMAL | dict(to_rgb=True), [*CROPPED, NORMALIZE]),
    'padded': (NORMAL, PADDED),
    "torchvision's": (NORMAL, [*BY_TORCHVISION, dict(type='PILToNumpy', to_bgr=True)]),
    "torchvision's tensors": (
        dict(),
        [
            *BY_TORCHVISION,
            dict(type='torchvision/ToTensor'),
            dict(type='torchvision/Normalize', mean=[0.5, 0.4, 0.3], std=[0.2, 0.2, 0.3]),
        ],
    ),
    'squeezed, then cropped': (NORMAL, [dict(type='Resize', scale=10, **PILLOW), CROPPED[1]]),
    'classes': (
        NORMAL,
        [dict(step, type=getattr(mmpretrain_steps, step['type'])) for step in CROPPED],
    ),
    **{
        f'OpenCV, {method}': (
            NORMAL,
            [dict(type='ResizeEdge', scale=10, interpolation=method), CROPPED[1]],
        )
        for method in ('nearest', 'bilinear', 'bicubic')
    },
}


@pytest.fixture
def folder_of_images(tmp_path):
    """A dataloader of the images of a folder."""
    (tmp_path / 'images' / 'a').mkdir(parents=True)
    draw(tmp_path / 'images' / 'a', 3)

    def make(*steps, **loading) -> dict:
        given = dataset_of(*steps, **loading) | dict(data_root=str(tmp_path / 'images'))
        return dict(batch_size=2, dataset=given)

    return make


def told(model, loader: dict, tmp_path) -> Source:
    """An export and its test images."""
    folder = export_subnet(model, SPACE.smallest(), tmp_path / 'told', dataset=loader['dataset'])
    source = Source.read(folder, data=dict(test_dataloader=loader))
    examples = take_examples(model, loader, source.description, tmp_path)
    return replace(source, examples=examples)


READ_AS_GREY = [('padded', 'grayscale'), ('OpenCV, bilinear', 'grayscale')]


@pytest.mark.parametrize(('case', 'color'), [*((case, 'color') for case in TOLD), *READ_AS_GREY])
def test_what_is_told_is_what_the_pipeline_does(folder_of_images, tmp_path, case, color):
    data, steps = TOLD[case]
    model, loader = supernet_of(3, data), folder_of_images(*steps, color=color)
    source = told(model, loader, tmp_path)
    assert len(source.examples.files) == len(SIZES)
    assert source.examples.inputs.std() > 0.1
    after, line = preprocess.compare(source)
    assert after == source, line
    assert '(within 1)' in line
    assert 'unknown_steps' not in source.description['preprocess']


@pytest.mark.parametrize(
    'change',
    [
        dict(interpolation='nearest'),
        dict(crop_ratio=1.0),
        dict(channel_order='BGR'),
        dict(mean=[0.0, 110.0, 100.0]),
        dict(backend='cv2'),
        dict(color='grey'),
        dict(squash=True),
        dict(pad_value=0),
    ],
)
def test_what_is_told_wrongly_is_found_on_images(folder_of_images, tmp_path, change):
    source = told(supernet_of(3, NORMAL | dict(to_rgb=True)), folder_of_images(*CROPPED), tmp_path)
    assert '(within 1)' in preprocess.compare(source)[1]
    wrong = source.description['preprocess'] | change
    wrong = replace(source, description=source.description | dict(preprocess=wrong))
    after, line = preprocess.compare(wrong)
    assert '(ABOVE 1)' in line
    steps = ['LoadImageFromFile, ResizeEdge, CenterCrop, PackInputs']
    assert after.description['preprocess']['unknown_steps'] == steps
    assert load_plain_vit(after.folder)[1] == after.description


def test_a_format_that_prepares_images_otherwise_is_not_kept(folder_of_images, tmp_path):
    model = supernet_of(3, NORMAL | dict(to_rgb=True))
    source = told(model, folder_of_images(*CROPPED), tmp_path)
    shifted = source.examples.inputs.roll(1, dims=3)
    (form,) = find_formats(['safetensors'])[0]
    wrong = replace(form, prepare=lambda *_: shifted)
    (check,) = export_formats(model, source, [wrong], tmp_path / 'out')
    assert not check.held
    assert 'otherwise than the test pipeline: they differ by' in str(check)
    right = replace(form, prepare=lambda *_: source.examples.inputs)
    (check,) = export_formats(model, source, [right], tmp_path / 'out')
    assert check.held, str(check)


def test_files_of_a_relative_folder_are_found_by_the_other_process(tmp_path, monkeypatch):
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    Image.fromarray(pixels).save(tmp_path / 'a.png')
    monkeypatch.chdir(tmp_path)
    load = "import numpy; found = [numpy.array(image).astype('float32') for image in images]"
    assert (prepare_alone(load, tmp_path, ['a.png'])[0].numpy() == pixels).all()


@pytest.mark.full
def test_libraries_prepare_images_as_the_pipeline_does(folder_of_images, tmp_path):
    """Crops that begin at half a pixel included; the inferencer by itself reads only colour."""
    for color, forms in (('color', FORMS), ('grayscale', FORMS[1:])):
        model, loader = supernet_of(3, NORMAL), folder_of_images(*CROPPED, color=color)
        source = told(model, loader, tmp_path)
        for check in export_formats(model, source, find_formats(forms)[0], tmp_path / color):
            assert check.held, str(check)


def test_timm_has_no_terms_for_all(tmp_path):
    steps = (dict(type='ResizeEdge', scale=8), CROPPED[1])
    model = supernet_of(3, NORMAL)
    dataset = dataset_of(*steps, color='grayscale')
    source = Source.read(export_subnet(model, SPACE.smallest(), tmp_path, dataset=dataset))
    message = "timm's transforms have no reading colour images as grey, no OpenCV's resizing; leave"
    with pytest.raises(UserError, match=message):
        find_formats(['timm'])[0][0].write(source, tmp_path)


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
        (dict(backend='gpu'), "preprocess.backend must be 'pillow', or 'cv2' with interpolation"),
        (dict(backend='cv2', interpolation='lanczos'), 'preprocess.backend must be'),
        (dict(color='colour'), "preprocess.color must be 'grey' or absent"),
        (dict(squash=1), 'preprocess.squash must be true or false'),
        (dict(pad_value=256), 'preprocess.pad_value must be None or an integer from 0 to 255'),
        (dict(unknown_steps='a'), 'preprocess.unknown_steps must be a list of names'),
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


def test_the_inferencer_finds_the_step_that_loads_given_as_a_class(tmp_path):
    model, dataset = supernet_of(3, NORMAL), dataset_of(*CROPPED)
    dataset['pipeline'][0]['type'] = transforms.LoadImageFromFile
    folder = export_subnet(model, SPACE.smallest(), tmp_path / 'source', dataset=dataset)
    mmpretrain.write(
        Source.read(folder, data=dict(test_dataloader=dict(dataset=dataset))), tmp_path
    )
    inferencer = ImageClassificationInferencer(str(tmp_path / 'config.py'), device='cpu')
    paths = draw(tmp_path, 3)
    scores = torch.tensor(np.stack([found['pred_scores'] for found in inferencer(paths)]))
    expected = by_supernet(model, dataset_of(*CROPPED), paths)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)


def test_mmpretrain_keeps_the_imports_of_the_config(tmp_path):
    source = Source.read(export_subnet(tiny_model(), SPACE.smallest(), tmp_path / 'source'))
    imports = dict(imports=['json'], allow_failed_imports=False)
    source = replace(source, data=dict(custom_imports=imports))
    mmpretrain.write(source, tmp_path)
    assert Config.fromfile(tmp_path / 'config.py').custom_imports == imports
