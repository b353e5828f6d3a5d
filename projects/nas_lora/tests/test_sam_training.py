"""The configs, and a training of the tiny SAM by MMPretrain's own tools."""

import json
from pathlib import Path

import mmpretrain
import numpy as np
import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS, init_default_scope
from nas_lora.registry import METRICS, MODELS, TRANSFORMS
from PIL import Image
from tool_calls import PROJECT, call

from tas_lora import UserError
from tas_lora.config import checked_config

CONFIGS = PROJECT / 'configs'
TOOLS = Path(mmpretrain.__file__).parent / '.mim' / 'tools'
NAMES = sorted(path.stem for path in CONFIGS.glob('*.py'))
PUBLISHED = ('camo', 'cod10k', 'isic2017', 'kvasir', 'leaf', 'sbu')

torch.set_num_threads(1)


def without_files(model: dict) -> dict:
    """The config of a model that starts from no file of weights."""
    inner, part = dict(model.get('model', model)), model.get('part', 'encoder')
    if 'pretrained' in inner:
        inner['pretrained'] = None
    if inner[part]['type'] == 'nas_lora.ViTEncoder':
        options = dict(inner[part])
        _, name = options.pop('source').split(':')
        size, _ = options.pop('img_size'), options.pop('checkpoint')
        inner[part] = dict(options, source=timm.create_model(name, img_size=size, num_classes=0))
    return dict(model, model=inner) if 'model' in model else inner


@pytest.mark.parametrize('name', NAMES)
def test_configs_name_parts_that_exist_and_arguments_that_they_take(name):
    config = checked_config(Config.fromfile(CONFIGS / f'{name}.py'))
    assert config.runner_type == 'nas_lora.SafeRunner'
    for part in ('train', 'val', 'test'):
        pipeline = config[f'{part}_dataloader'].dataset.pipeline
        assert all(TRANSFORMS.build(step) for step in pipeline)
    assert METRICS.build(config.test_evaluator)
    # MMPretrain's loss with smoothed labels reads a value as it is built.
    with torch.device('cpu' if 'classes' in name else 'meta'):
        assert MODELS.build(without_files(config.model))
    text = (CONFIGS / f'{name}.py').read_text()
    assert f'configs/{name}.py' in text
    assert 'EXPECTED' not in text
    assert ('Not run' in text) == name.startswith(PUBLISHED)


def touch_pairs(root: Path, images: str, masks: str, names: dict[str, str]) -> None:
    for image, mask in names.items():
        for folder, name in ((images, image), (masks, mask)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            (root / folder / name).touch()


def test_published_folders_are_found_by_their_configs(tmp_path, monkeypatch):
    """Layouts as they are unpacked, written out here once more."""
    monkeypatch.chdir(tmp_path)
    data = Path('data')
    isic, cod, sbu = data / 'isic2017', data / 'cod10k', data / 'sbu'
    for part, version in (('Training', ''), ('Validation', ''), ('Test', '_v2')):
        pair = {'ISIC_0000001.jpg': 'ISIC_0000001_segmentation.png'}
        images, truth = f'ISIC-2017_{part}{version}_Data', f'ISIC-2017_{part}{version}_Part1'
        touch_pairs(isic, images, f'{truth}_GroundTruth', pair)
        (isic / images / 'ISIC_0000001_superpixels.png').touch()
    for part in ('Train', 'Test'):
        name = f'COD10K-CAM-{part}'
        touch_pairs(cod, f'{part}/Image', f'{part}/GT_Object', {f'{name}.jpg': f'{name}.png'})
        touch_pairs(data / 'camo', f'Images/{part}', 'GT', {f'{part}.jpg': f'{part}.png'})
    for part in ('SBUTrain4KRecoveredSmall', 'SBU-Test'):
        touch_pairs(sbu / part, 'ShadowImages', 'ShadowMasks', {'lssd1.jpg': 'lssd1.png'})
    for part in ('train', 'val', 'test'):
        touch_pairs(data / 'leaf' / part, 'images', 'masks', {'1.jpg': '1.png'})
        touch_pairs(data / 'kvasir' / part, 'images', 'masks', {'c.jpg': 'c.jpg'})
    init_default_scope('mmpretrain')
    for name in PUBLISHED:
        config, images = Config.fromfile(CONFIGS / f'{name}_full.py'), {}
        for part in ('train', 'val', 'test'):
            dataset = dict(config[f'{part}_dataloader'].dataset, serialize_data=False)  # is slow
            found = mmpretrain.datasets.build_dataset(dataset)
            [images[part]] = [found.get_data_info(i)['img_path'] for i in range(len(found))]
        has_own_val = name in ('isic2017', 'kvasir', 'leaf')
        assert len(set(images.values())) == 2 + has_own_val, images
        assert images['train'] not in (images['val'], images['test'])


def draw_squares(root: Path, count: int, seed: int) -> None:
    """Bright squares on noise."""
    rng = np.random.default_rng(seed)
    for folder in ('images', 'masks'):
        (root / folder).mkdir(parents=True)
    for i in range(count):
        picture, mask = rng.integers(0, 90, (64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
        y, x, side = *rng.integers(0, 36, 2), rng.integers(16, 28)
        picture[y : y + side, x : x + side] += 150
        mask[y : y + side, x : x + side] = 255
        Image.fromarray(picture).save(root / 'images' / f'{i}.png')
        Image.fromarray(mask).save(root / 'masks' / f'{i}.png')


def train(work_dir: str, *arguments, epochs: int = 3) -> None:
    options = [f'train_cfg.max_epochs={epochs}', 'param_scheduler=None', 'randomness.seed=1']
    options += ['default_hooks.checkpoint.max_keep_ckpts=-1', f'experiment_name={work_dir}']
    arguments = [*arguments, '--work-dir', work_dir, '--cfg-options', *options]
    call('train.py', CONFIGS / 'pretrain_stamps.py', *arguments, folder=TOOLS)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """The working folder of a training on squares."""
    folder = tmp_path_factory.mktemp('training')
    for seed, (part, count) in enumerate(dict(train=64, val=8, test=12).items()):
        draw_squares(folder / 'data' / 'stamps' / part, count, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train('whole')
        yield folder


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=False)['state_dict']


@pytest.mark.full
def test_a_resumed_training_ends_with_the_weights_of_a_whole_one(trained):
    train('resumed', '--resume', 'whole/epoch_1.pth')
    whole, resumed = (weights(trained / name / 'epoch_3.pth') for name in ('whole', 'resumed'))
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)
    first = weights(trained / 'whole/epoch_1.pth')
    assert any(not torch.equal(first[name], value) for name, value in whole.items())


@pytest.mark.full
def test_the_test_tool_scores_what_the_model_predicts(trained):
    """By a model loaded as a file of SAM, images read by Pillow, and IoU from its definition."""
    checkpoint = 'whole/epoch_3.pth'
    out = ['--out', 'metrics.json', '--out-item', 'metrics', '--work-dir', 'tested']
    call('test.py', CONFIGS / 'pretrain_stamps.py', checkpoint, *out, folder=TOOLS)
    scores = json.loads((trained / 'metrics.json').read_text())
    config = Config.fromfile(CONFIGS / 'pretrain_stamps.py').model
    model = MODELS.build(dict(config, pretrained=checkpoint))
    model.eval()
    mean, std = (np.array(config.data_preprocessor[name]) for name in ('mean', 'std'))
    ious = []
    for path in sorted(Path('data/stamps/test/images').iterdir()):
        pixels = (np.asarray(Image.open(path)) - mean) / std
        pixels = torch.tensor(pixels, dtype=torch.float32).permute(2, 0, 1)[None]
        found = (model(pixels)[0, 0] > 0).numpy()
        mask = np.asarray(Image.open(str(path).replace('images', 'masks'))) > 0
        ious.append((found & mask).sum() / max(1, (found | mask).sum()))
    assert scores['iou'] == pytest.approx(np.mean(ious), abs=1e-4)
    assert scores['iou'] > 0.25  # a square is some .12 of a picture, which all of it would score


@pytest.mark.full
def test_checkpoints_that_do_not_fit_are_refused(trained, tmp_path):
    config = Config.fromfile(CONFIGS / 'pretrain_stamps.py')
    config.update(work_dir='refused', experiment_name='refused')
    runner = RUNNERS.build(config)
    state = weights(trained / 'whole/epoch_1.pth')
    state.pop('decoder.iou_token.weight')
    torch.save(dict(state_dict=state), tmp_path / 'less.pth')
    with pytest.raises(UserError, match=r'less.pth does not fit .*decoder.iou_token.weight'):
        runner.load_checkpoint(str(tmp_path / 'less.pth'))
    torch.save(state, tmp_path / 'bare.pth')
    with pytest.raises(UserError, match='bare.pth is not a training checkpoint'):
        runner.load_checkpoint(str(tmp_path / 'bare.pth'))
    torch.save(dict(state_dict=state, meta=Path), tmp_path / 'code.pth')
    with pytest.raises(UserError, match='such files can run code'):
        runner.load_checkpoint(str(tmp_path / 'code.pth'))
