"""tools/predict.py against MMPretrain's pipeline and the supernet itself."""

import json
import runpy

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, call_tool
from mmengine.dataset import Compose
from mmpretrain.registry import TRANSFORMS
from PIL import Image
from test_export import trained_like
from tiny import IMAGE, SPACE, tiny_model

from tas_lora import export_subnet

TOOL = runpy.run_path(str(ROOT / 'tools' / 'predict.py'))
SIZES = [(8, 8), (9, 8), (13, 40), (64, 31), (1, 5), (200, 100)]  # width, height
DATA = {
    1: dict(mean=[120.0], std=[60.0]),
    3: dict(mean=[120.0, 110.0, 100.0], std=[60.0, 50.0, 40.0]),
}


def exported(folder, channels: int = 3, to_rgb: bool = True):
    """A supernet and the folder of its smallest subnet."""
    data = dict(type='mmpretrain.ClsDataPreprocessor', **DATA[channels], to_rgb=to_rgb)
    backbone = dict(type='tas_lora.ElasticViT', arch=SPACE.largest().to_dict(), init_std=0.2)
    backbone |= IMAGE | dict(in_channels=channels, mole=dict(num_experts=8, rank=2))
    model = trained_like(tiny_model(backbone=backbone, data_preprocessor=data))
    model.head.fc.weight.data *= 30  # or all classes would be as likely
    return model, export_subnet(model, SPACE.smallest(), folder)


def draw(folder, sizes, channels: int = 3) -> list[str]:
    """Random images of these sizes."""
    rng, paths = np.random.default_rng(0), []
    for i, (width, height) in enumerate(sizes):
        pixels = rng.integers(0, 256, (height, width, channels), np.uint8)
        paths.append(str(folder / f'{i}.png'))
        Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(paths[-1])
    return paths


def expected(model, paths: list[str], resize: int, color: str = 'color') -> torch.Tensor:
    """Probabilities of the supernet's smallest subnet by MMPretrain's own transforms."""
    pipeline = Compose(
        [
            TRANSFORMS.build(step)
            for step in (
                dict(type='mmpretrain.LoadImageFromFile', color_type=color),
                dict(
                    type='mmpretrain.ResizeEdge',
                    scale=resize,
                    edge='short',
                    backend='pillow',
                    interpolation='bicubic',
                ),
                dict(type='mmpretrain.CenterCrop', crop_size=8),
                dict(type='mmpretrain.PackInputs'),
            )
        ]
    )
    samples = [pipeline(dict(img_path=path)) for path in paths]
    batch = model.data_preprocessor(dict(inputs=[sample['inputs'] for sample in samples]))
    model.set_subnet(SPACE.smallest())
    with torch.no_grad():
        return model(batch['inputs'], mode='tensor').softmax(dim=1)


def predicted(out) -> list[list[tuple[int, float]]]:
    return [
        [(found['class_index'], found['probability']) for found in result['predictions']]
        for result in json.loads(out.read_text())
    ]


@pytest.mark.parametrize('ratio', [1.0, 0.8])
@pytest.mark.parametrize(
    ('channels', 'to_rgb', 'options'),
    [(3, True, ()), (3, False, ('--channel-order', 'BGR')), (1, False, ())],
)
def test_probabilities_are_those_of_the_supernet(tmp_path, channels, to_rgb, options, ratio):
    model, folder = exported(tmp_path / 'export', channels, to_rgb)
    paths = draw(tmp_path, SIZES, channels)
    out = tmp_path / 'out.json'
    arguments = (folder, *paths, '--top', 9, '--batch-size', 4, '--crop-ratio', ratio, *options)
    assert call_tool('predict.py', *arguments, '--out', out) == 0
    wanted = expected(model, paths, round(8 / ratio), 'color' if channels == 3 else 'grayscale')
    assert wanted.max() - wanted.min() > 0.2  # else it would not matter what is shown
    assert [result['image'] for result in json.loads(out.read_text())] == paths
    for found, probabilities in zip(predicted(out), wanted, strict=True):
        assert [index for index, _ in found] == probabilities.argsort(descending=True).tolist()
        for index, probability in found:
            assert probability == pytest.approx(float(probabilities[index]), abs=1e-5)


def test_an_image_of_the_right_size_stays_as_it_is(tmp_path):
    (path,) = draw(tmp_path, [(8, 8)])
    pixels = TOOL['read_image'](path, 'RGB', 8, 1.0)
    assert np.array_equal(pixels[..., ::-1], cv2.imread(path))


def test_a_photo_is_turned_as_its_camera_says(tmp_path):
    (path,) = draw(tmp_path, [(8, 8)])
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    Image.open(path).save(tmp_path / 'turned.png', exif=exif)
    turned = TOOL['read_image'](str(tmp_path / 'turned.png'), 'RGB', 8, 1.0)
    assert np.array_equal(turned, np.rot90(cv2.imread(path)[..., ::-1], -1))


def test_colour_becomes_grey_and_grey_colour(tmp_path):
    colour, grey = draw(tmp_path, [(8, 8)])[0], str(tmp_path / 'grey.png')
    Image.open(colour).convert('L').save(grey)
    levels = TOOL['read_image'](grey, 'L', 8, 1.0)
    weighted = cv2.imread(colour)[..., ::-1] @ np.array([0.299, 0.587, 0.114])  # ITU-R 601
    assert np.abs(TOOL['read_image'](colour, 'L', 8, 1.0) - weighted).max() <= 1
    assert np.array_equal(TOOL['read_image'](grey, 'RGB', 8, 1.0), np.stack([levels] * 3, axis=-1))
    Image.open(colour).convert('RGBA').save(tmp_path / 'alpha.png')
    with_alpha = TOOL['read_image'](str(tmp_path / 'alpha.png'), 'RGB', 8, 1.0)
    assert np.array_equal(with_alpha, TOOL['read_image'](colour, 'RGB', 8, 1.0))


def test_the_table_shows_the_best_names(tmp_path, capsys):
    model, folder = exported(tmp_path / 'export')
    path = draw(tmp_path, [(8, 8)])[0]
    (tmp_path / 'names.txt').write_text('ash\nbeech [red]\nelm\nfir\noak\n')
    options = ('--classes', tmp_path / 'names.txt', '--top', 2)
    assert call_tool('predict.py', folder, path, *options) == 0
    shown = capsys.readouterr().out
    names = ('ash', 'beech [red]', 'elm', 'fir', 'oak')
    probabilities = expected(model, [path], 8)[0]
    best = probabilities.argsort(descending=True).tolist()
    for index in best[:2]:
        line = next(line for line in shown.splitlines() if names[index] in line)
        assert f'{probabilities[index]:.1%}' in line
    assert not any(names[index] in shown for index in best[2:])
    assert shown.index(names[best[0]]) < shown.index(names[best[1]])


def test_names_in_the_export_are_used(tmp_path, capsys):
    _, folder = exported(tmp_path / 'export')
    path = draw(tmp_path, [(8, 8)])[0]
    description = json.loads((folder / 'architecture.json').read_text())
    names = ['ash', 'beech', 'elm', 'fir', 'oak']
    (folder / 'architecture.json').write_text(json.dumps(description | dict(classes=names)))
    assert call_tool('predict.py', folder, path, '--out', tmp_path / 'out.json') == 0
    (result,) = json.loads((tmp_path / 'out.json').read_text())
    assert [found['class_name'] for found in result['predictions']] == [
        names[found['class_index']] for found in result['predictions']
    ]
    for given, code in ((names, 0), (['Esche', *names[1:]], 0), (names[::-1], 2)):
        (tmp_path / 'names.txt').write_text('\n'.join(given))
        assert call_tool('predict.py', folder, path, '--classes', tmp_path / 'names.txt') == code
    assert 'has the names of the export in another order' in capsys.readouterr().err


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs the tool on an export, or on what ``folder`` says; returns the one line of the error."""
    _, export = exported(tmp_path / 'export')
    draw(tmp_path, [(8, 8)])

    def run(*arguments, folder=export) -> str:
        capsys.readouterr()
        assert call_tool('predict.py', folder, *(arguments or (tmp_path / '0.png',))) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return run


def test_images_that_cannot_be_read(refused, tmp_path):
    assert f'image {tmp_path}/none.png does not exist' in refused(tmp_path / 'none.png')
    assert f'image {tmp_path} is not a file' in refused(tmp_path)
    (tmp_path / 'text.png').write_text('no image')
    assert 'text.png cannot be read: UnidentifiedImageError' in refused(tmp_path / 'text.png')
    large = tmp_path / 'large.png'
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(large)
    large.write_bytes(large.read_bytes()[:6000])
    assert 'large.png cannot be read: OSError' in refused(tmp_path / '0.png', large)
    Image.new('RGB', (1, 101)).save(tmp_path / 'line.png')
    assert 'more than 100 times as long as wide' in refused(tmp_path / 'line.png')
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(tmp_path / 'deep.png')
    assert 'deep.png has more than 8 bits per channel' in refused(tmp_path / 'deep.png')
    cv2.imwrite(str(tmp_path / 'colour.png'), np.full((8, 8, 3), 4000, np.uint16))
    assert 'colour.png has more than 8 bits per channel' in refused(tmp_path / 'colour.png')


def test_folders_that_are_no_export(refused, tmp_path):
    assert 'it has no architecture.json' in refused(folder=tmp_path)
    assert 'it has no architecture.json' in refused(folder=tmp_path / 'none')
    (tmp_path / 'export/weights.safetensors').unlink()
    assert 'cannot be loaded: ValueError' in refused()


def test_damaged_weights_are_no_prediction(refused, tmp_path):
    model, _ = exported(tmp_path / 'other')
    model.head.fc.bias.data[0] = torch.nan
    folder = export_subnet(model, SPACE.smallest(), tmp_path / 'other')
    assert 'or an image after it is not finite' in refused(folder=folder)


def test_options_that_cannot_be(refused, tmp_path):
    image, names = tmp_path / '0.png', tmp_path / 'names.txt'
    names.write_text('ash\n\n')
    assert '1 names for a network of 5 classes' in refused(image, '--classes', names)
    assert 'FileNotFoundError' in refused(image, '--classes', tmp_path / 'none.txt')
    assert '--top must be a positive integer' in refused(image, '--top', 0)
    assert '--batch-size must be a positive integer' in refused(image, '--batch-size', -1)
    assert '--crop-ratio must be' in refused(image, '--crop-ratio', 0)
    assert '--crop-ratio must be' in refused(image, '--crop-ratio', 1.5)
    assert '--crop-ratio must be' in refused(image, '--crop-ratio', 'nan')
    assert 'cannot be written' in refused(image, '--out', tmp_path / 'none' / 'out.json')


def test_an_order_of_channels_is_not_guessed(refused, tmp_path):
    _, folder = exported(tmp_path / 'as_loaded', to_rgb=False)
    assert "'as loaded'; set --channel-order to RGB, or to BGR" in refused(folder=folder)
