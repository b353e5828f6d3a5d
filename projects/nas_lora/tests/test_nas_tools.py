"""The tools, from pictures to records, tables, figures and models that are taken away."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from nas_lora.evaluation import Scorer, calibration_images, load_model
from nas_lora.images.shapes import draw_shape, write_shapes
from nas_lora.merging.take_away import levels_of, load_folded, plain_encoder
from nas_lora.registry import MODELS
from nas_lora.study.records import read_records
from PIL import Image
from tool_calls import PROJECT, call

from tas_lora import UserError
from tas_lora.config import load_config
from tas_lora.export import onnx

torch.set_num_threads(1)


def compare(*methods: str) -> None:
    where = ['--data', 'sam', '--seeds', 0, '--out', 'results', '--work-dir', 'runs']
    call('compare.py', '--methods', *methods, *where, *options(), 'train_cfg.max_epochs=1')


@pytest.fixture(scope='module')
def compared(tmp_path_factory):
    """The working folder of short trainings on drawn shapes."""
    folder = tmp_path_factory.mktemp('compared')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_shapes(Path('nuclei'), dict(train=16, val=4, test=14))
        sam = plain_sam()
        torch.save(dict(state_dict=sam), 'sam.pth')
        compare('full', 'lora', 'nas_lora', 'no_pool', 'only_skip_connect')
        yield folder


def plain_sam() -> dict:
    torch.manual_seed(0)
    config = load_config(PROJECT / 'configs/pretrain_stamps.py')
    return MODELS.build(config.model).state_dict()


def folder_of(method: str) -> Path:
    return Path('runs') / f'sam_{method}_seed0'


def config_of(method: str):
    return load_config(folder_of(method) / 'config.py')


def options() -> list[str]:
    roots = [f'{p}_dataloader.dataset.data_root=nuclei/{p}' for p in ('train', 'val', 'test')]
    return ['--cfg-options', 'model.model.pretrained=sam.pth', *roots]


def trained(method: str) -> list[Path]:
    return [folder_of(method) / name for name in ('config.py', 'epoch_1.pth')]


def records() -> dict[str, dict]:
    return {r['method']: r for r in read_records(Path('results/sam.jsonl')).values()}


def test_a_shape_is_where_its_mask_says():
    picture, mask = draw_shape(64, np.random.default_rng(3))
    pixels, inside = np.asarray(picture, dtype=float), np.asarray(mask) > 0
    assert 0.02 < inside.mean() < 0.7
    assert pixels[inside].std(axis=0).max() < 20  # one colour and noise
    again, _ = draw_shape(64, np.random.default_rng(3))
    assert np.array_equal(np.asarray(again), picture)


@pytest.mark.full
def test_records_hold_what_a_checkpoint_scores_and_are_not_made_again(compared, capsys):
    path = Path('results/sam.jsonl')
    record, cfg = records()['no_pool'], config_of('no_pool')
    model = load_model(cfg, trained('no_pool')[1])
    assert Scorer(cfg)(model) == pytest.approx(record['scores']['test'], abs=1e-4)
    assert len(record['losses']) == 1
    grey = np.asarray(Image.open(folder_of('no_pool') / 'masks.png'))
    assert np.array_equal(grey[:, 64:128], (255 * Scorer(cfg).masks(model)[1]).round().byte())
    sums = [sum(chances.values()) for chances in record['choices'].values()]
    assert sums == pytest.approx([1] * 12, abs=1e-3)
    before = path.stat().st_mtime_ns
    compare('no_pool')
    assert path.stat().st_mtime_ns == before
    assert 'sam_no_pool_seed0: has a record' in capsys.readouterr().out


@pytest.mark.full
def test_levels_are_exact_refused_or_lossy(compared):
    before, levels = {}, {}
    for method in ('no_pool', 'only_skip_connect'):
        cfg = config_of(method)
        before[method] = records()[method]['scores']['test']
        levels[method] = levels_of(load_model(cfg, trained(method)[1]), cfg, images=64)
        assert levels[method]['fold']['scores'] == pytest.approx(before[method], abs=1e-4)
    spatial, token = levels.values()
    assert all(found['fold']['difference'] < 1e-6 for found in levels.values())
    assert token['exact']['difference'] < 1e-6 < spatial['least_squares']['difference'] < 1
    assert spatial['distilled']['difference'] < 1
    assert spatial['dropped']['scores'].keys() == before['no_pool'].keys()
    assert 'sep_conv_3x3 is in the way' in spatial['exact']['refused']
    assert token['exact']['scores'] == pytest.approx(before['only_skip_connect'], abs=1e-4)
    assert list(spatial['least_squares']['r2']) == [f'layers.{i}.attn.qkv' for i in range(4)]
    assert max(spatial['least_squares']['r2'].values()) < 0.999
    assert min(token['least_squares']['r2'].values()) > 0.999


@pytest.mark.full
@torch.no_grad()
def test_what_merges_exactly_is_a_plain_model_in_its_file(compared, capsys):
    out = ['--level', 'exact', '--out', 'taken_exact', '--rounds', 2]
    call('merge.py', *trained('only_skip_connect'), *out, '--formats', 'onnx')
    printed = capsys.readouterr().out
    assert re.search(r'iou 0\.\d+ -> 0\.\d+ \([+-]0\.0000\)', printed)
    assert 'taken encoder: 163,136 parameters' in printed
    plain = load_config(PROJECT / 'configs/pretrain_stamps.py')
    plain.model.pretrained = 'taken_exact/weights.safetensors'
    taken = MODELS.build(plain.model)
    taken.eval()
    model = load_model(config_of('only_skip_connect'), trained('only_skip_connect')[1])
    images = torch.randn(2, 3, 64, 64)
    assert torch.allclose(taken(images), model(images), atol=1e-4)
    assert type(plain_encoder(config_of('only_skip_connect'))) is type(taken.encoder)
    (features,) = onnx.run(Path('taken_exact'), [images], 'features.onnx')
    assert torch.allclose(features, taken.encoder(images)[-1], atol=1e-4)


@pytest.mark.full
@torch.no_grad()
def test_a_folded_model_comes_back_from_its_file(compared, capsys):
    out = ['--level', 'fold', '--out', 'taken_fold', '--rounds', 2]
    call('merge.py', *trained('no_pool'), *out)
    kernels = 12 * 3 * 3 * 9 * 9
    searched = 12 * 3 * 2 * 64 + kernels
    assert f'taken encoder: {163_136 + searched:,} parameters' in capsys.readouterr().out
    folded = load_folded(config_of('no_pool'), 'taken_fold/weights.safetensors')
    model = load_model(config_of('no_pool'), trained('no_pool')[1])
    images = torch.randn(2, 3, 64, 64)
    assert torch.allclose(folded(images), model(images), atol=1e-4)
    with pytest.raises(UserError, match='has no folded cell for encoder.layers.0'):
        load_folded(config_of('only_skip_connect'), 'taken_exact/weights.safetensors')


@pytest.mark.full
def test_merge_refuses_in_one_line_and_writes_nothing(compared, capsys):
    with pytest.raises(SystemExit, match='2'):
        call('merge.py', *trained('no_pool'), '--level', 'exact', '--out', 'refused')
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith('error: layers.0.attn.qkv.q: merge(exact): sep_conv_3x3 is in the')
    assert not Path('refused').exists()


FOLDED = 'runs/sam_no_pool_seed0/epoch_1.pth'


@pytest.mark.full
@pytest.mark.parametrize(
    ('tool', 'config', 'arguments', 'message'),
    [
        ('merge.py', 'lora', [FOLDED, '--level', 'fold'], 'does not fit the model: .*lora_down'),
        ('merge.py', 'no_pool', [FOLDED, '--level', 'fold', '--out', 'sam.pth'], 'is a file'),
        ('test.py', 'only_skip_connect', [FOLDED], 'does not fit the model: .*Unexpected key'),
        ('test.py', 'no_pool', ['none.pth'], 'checkpoint none.pth does not exist'),
        ('train.py', 'lora', ['--work-dir', 'sam.pth'], 'sam.pth is a file; give another'),
    ],
)
def test_tools_refuse_in_one_line(compared, capsys, tool, config, arguments, message):
    out = ['--out', 'none'] * (tool == 'merge.py' and '--out' not in arguments)
    with pytest.raises(SystemExit, match='2'):
        call(tool, folder_of(config) / 'config.py', *arguments, *out)
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith('error: ')
    assert re.search(message, error)
    assert not Path('none').exists()


@pytest.mark.full
def test_a_plain_model_has_nothing_to_take_away(compared, capsys):
    arguments = ['sam.pth', '--level', 'fold', '--out', 'none']
    with pytest.raises(SystemExit, match='2'):
        call(
            'merge.py',
            PROJECT / 'configs/pretrain_stamps.py',
            *arguments,
            *options()[:1],
            *options()[2:],
        )
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith('error: the SAMSegmentor has no NASLoRALinear')


@pytest.mark.full
def test_as_many_images_calibrate_as_asked(compared):
    cfg = config_of('only_skip_connect')
    model = load_model(cfg, trained('only_skip_connect')[1])
    batches = list(calibration_images(cfg, model, 30))
    assert [len(batch) for batch in batches] == [8, 8, 8, 8]
    assert abs(torch.cat(batches).mean()) < 2  # normalised


@pytest.mark.full
def test_tables_and_figures_are_made_of_the_records(compared, capsys):
    sheet = ['--runs', 'runs', '--images', 'nuclei/test', '--data', 'sam', '--numbers', 0, 3]
    call('report.py', '--records', 'results', *sheet, '--methods', 'full', 'nas_lora')
    text = Path('results/tables.md').read_text()
    assert text.strip() in capsys.readouterr().out
    iou = 100 * records()['full']['scores']['test']['iou']
    assert f'| full fine-tuning | 163,136 | {iou:.1f} |' in text
    for name in ('masks.png', 'choices_sam.png', 'scores.png'):
        assert np.asarray(Image.open(f'results/{name}')).std() > 10


@pytest.mark.full
@pytest.mark.parametrize(
    ('tool', 'arguments', 'message'),
    [
        ('compare.py', ['--seeds', '-1'], '--seeds must be an integer from 0 up'),
        ('compare.py', ['--data', 'sam'], "there is no folder 'data/nuclei/train'"),
        ('report.py', ['--records', 'runs'], 'runs has no records; tools/compare.py writes them'),
        (
            'report.py',
            ['--records', 'results', '--runs', 'runs'],
            '--runs and --images go together',
        ),
        (
            'report.py',
            ['--records', 'results', '--runs', 'runs', '--images', 'nuclei/test'],
            '--methods decoder: there is no record of it on emoji',
        ),
    ],
)
def test_tools_of_the_study_say_what_is_missing(compared, capsys, tool, arguments, message):
    with pytest.raises(SystemExit, match='2'):
        call(tool, '--out', 'other', *arguments)
    assert message in capsys.readouterr().err
    assert not Path('other').exists() or tool == 'report.py'


@pytest.mark.full
def test_the_demonstration_says_what_to_give(compared, capsys):
    with pytest.raises(SystemExit, match='2'):
        call('demo.py', '--wheel', 'missing.whl')
    assert 'missing.whl does not exist' in capsys.readouterr().err
