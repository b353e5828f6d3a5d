"""The tools, from pictures to records, tables, figures and models that are taken away."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from nas_lora.evaluation import Scorer, calibration_images, load_model
from nas_lora.methods import Run
from nas_lora.registry import MODELS
from nas_lora.shapes import draw_shape, write_shapes
from nas_lora.take_away import load_folded, plain_encoder
from PIL import Image
from tool_calls import PROJECT, call

from tas_lora import UserError
from tas_lora.config import load_config

TOKEN, FOLD = (PROJECT / f'configs/nuclei_nas_{name}.py' for name in ('token', 'fold'))
torch.set_num_threads(1)


def compare(*methods: str) -> None:
    where = ['--data-root', 'nuclei', '--pretrained', 'sam.pth', '--out', 'results', '--seeds', 0]
    short = ['train_cfg.max_epochs=1', 'model.model.pretrained=sam.pth']
    call('compare.py', '--methods', *methods, *where, '--work-dir', 'runs', '--cfg-options', *short)


@pytest.fixture(scope='module')
def compared(tmp_path_factory):
    """The working folder of short trainings on drawn shapes."""
    folder = tmp_path_factory.mktemp('compared')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_shapes(Path('nuclei'), dict(train=16, val=4, test=14))
        sam = plain_sam()
        torch.save(dict(state_dict=sam), 'sam.pth')
        compare('full', 'lora', 'nas_lora', 'nas_fold', 'nas_token')
        yield folder


def plain_sam() -> dict:
    torch.manual_seed(0)
    config = load_config(PROJECT / 'configs/pretrain_stamps.py')
    return MODELS.build(config.model).state_dict()


def config_of(method: str):
    return Run(method, 0).config('nuclei', 'sam.pth')


def options() -> list[str]:
    roots = [f'{p}_dataloader.dataset.data_root=nuclei/{p}' for p in ('train', 'val', 'test')]
    return ['--cfg-options', 'model.model.pretrained=sam.pth', *roots]


def trained(method: str) -> Path:
    return Path('runs') / f'{method}_seed0' / 'epoch_1.pth'


def test_a_shape_is_where_its_mask_says():
    picture, mask = draw_shape(64, np.random.default_rng(3))
    pixels, inside = np.asarray(picture, dtype=float), np.asarray(mask) > 0
    assert 0.02 < inside.mean() < 0.7
    assert pixels[inside].std(axis=0).max() < 20  # one colour and noise
    again, _ = draw_shape(64, np.random.default_rng(3))
    assert np.array_equal(np.asarray(again), picture)


@pytest.mark.full
def test_records_hold_what_a_checkpoint_scores_and_are_not_made_again(compared, capsys):
    path = Path('results/nas_fold_seed0.json')
    record = json.loads(path.read_text())
    cfg = config_of('nas_fold')
    model = load_model(cfg, trained('nas_fold'))
    assert Scorer(cfg)(model) == pytest.approx(record['scores']['test'], abs=1e-6)
    assert len(record['losses']) == 1
    grey = np.asarray(Image.open('results/nas_fold_seed0.png'))
    assert np.array_equal(grey[:, 64:128], (255 * Scorer(cfg).masks(model)[1]).round().byte())
    sums = [sum(chances.values()) for chances in record['choices'].values()]
    assert sums == pytest.approx([1] * 12)
    before = path.stat().st_mtime_ns
    compare('nas_fold')
    assert path.stat().st_mtime_ns == before
    assert 'nas_fold_seed0: has a record' in capsys.readouterr().out


@pytest.mark.full
def test_levels_in_records_are_exact_refused_or_lossy(compared):
    levels = {
        m: json.loads(Path(f'results/{m}_seed0.json').read_text())
        for m in ('nas_fold', 'nas_token')
    }
    for record in levels.values():
        folded = record['levels']['fold']['scores']
        assert folded == pytest.approx(record['scores']['test'], abs=1e-5)
    assert 'avg_pool_3x3 is in the way' in levels['nas_fold']['levels']['exact']['refused']
    exact = levels['nas_token']['levels']['exact']['scores']
    assert exact == pytest.approx(levels['nas_token']['scores']['test'], abs=1e-5)
    r2 = levels['nas_fold']['levels']['least_squares']['r2']
    assert list(r2) == [f'layers.{i}.attn.qkv' for i in range(4)]
    assert max(r2.values()) < 0.999
    token = levels['nas_token']['levels']['least_squares']['r2']
    assert min(token.values()) > 0.999


@pytest.mark.full
@torch.no_grad()
def test_what_merges_exactly_is_a_plain_model_in_its_file(compared, capsys):
    out = ['--level', 'exact', '--out', 'taken_exact', '--rounds', 2]
    call('merge.py', TOKEN, trained('nas_token'), *out, *options())
    printed = capsys.readouterr().out
    assert re.search(r'iou 0\.\d+ -> 0\.\d+ \([+-]0\.0000\)', printed)
    assert 'taken encoder: 163,136 parameters' in printed
    plain = load_config(PROJECT / 'configs/pretrain_stamps.py')
    plain.model.pretrained = 'taken_exact/weights.safetensors'
    taken = MODELS.build(plain.model)
    taken.eval()
    model = load_model(config_of('nas_token'), trained('nas_token'))
    images = torch.randn(2, 3, 64, 64)
    assert torch.allclose(taken(images), model(images), atol=1e-4)
    assert type(plain_encoder(config_of('nas_token'))) is type(taken.encoder)


@pytest.mark.full
@torch.no_grad()
def test_a_folded_model_comes_back_from_its_file(compared, capsys):
    out = ['--level', 'fold', '--out', 'taken_fold', '--rounds', 2]
    call('merge.py', FOLD, trained('nas_fold'), *out, *options())
    kernels = 12 * 3 * 3 * 9 * 9
    searched = 12 * 3 * 2 * 64 + kernels
    assert f'taken encoder: {163_136 + searched:,} parameters' in capsys.readouterr().out
    folded = load_folded(config_of('nas_fold'), 'taken_fold/weights.safetensors')
    model = load_model(config_of('nas_fold'), trained('nas_fold'))
    images = torch.randn(2, 3, 64, 64)
    assert torch.allclose(folded(images), model(images), atol=1e-4)
    with pytest.raises(UserError, match='has no folded cell for encoder.layers.0'):
        load_folded(config_of('nas_token'), 'taken_exact/weights.safetensors')


@pytest.mark.full
def test_merge_refuses_in_one_line_and_writes_nothing(compared, capsys):
    arguments = [FOLD, trained('nas_fold'), '--level', 'exact', '--out', 'refused']
    with pytest.raises(SystemExit, match='2'):
        call('merge.py', *arguments, *options())
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith('error: layers.0.attn.qkv.q: merge(exact): avg_pool_3x3 is in the')
    assert not Path('refused').exists()


FOLDED = 'runs/nas_fold_seed0/epoch_1.pth'


@pytest.mark.full
@pytest.mark.parametrize(
    ('tool', 'config', 'arguments', 'message'),
    [
        ('merge.py', 'lora', [FOLDED, '--level', 'fold'], 'does not fit the model: .*lora_down'),
        ('merge.py', 'nas_fold', [FOLDED, '--level', 'fold', '--out', 'sam.pth'], 'is a file'),
        ('test.py', 'nas_token', [FOLDED], 'does not fit the model: .*Unexpected key'),
        ('test.py', 'nas_fold', ['none.pth'], 'checkpoint none.pth does not exist'),
        ('train.py', 'lora', ['--work-dir', 'sam.pth'], 'sam.pth is a file; give another'),
    ],
)
def test_tools_refuse_in_one_line(compared, capsys, tool, config, arguments, message):
    out = ['--out', 'none'] * (tool == 'merge.py' and '--out' not in arguments)
    with pytest.raises(SystemExit, match='2'):
        call(tool, PROJECT / f'configs/nuclei_{config}.py', *arguments, *out, *options())
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
    cfg = config_of('nas_token')
    model = load_model(cfg, trained('nas_token'))
    batches = list(calibration_images(cfg, model, 30))
    assert [len(batch) for batch in batches] == [8, 8, 8, 8]
    assert abs(torch.cat(batches).mean()) < 2  # normalised


@pytest.mark.full
def test_tables_and_figures_are_made_of_the_records(compared, capsys):
    call('report.py', '--records', 'results', '--data-root', 'nuclei')
    text = Path('results/report.md').read_text()
    assert text.strip() in capsys.readouterr().out
    iou = json.loads(Path('results/lora_seed0.json').read_text())['scores']['test']['iou']
    assert f'| LoRA | 1 | 43,056 | {iou:.3f} |' in text
    assert 'refused: max_pool_3x3' in text
    for name in ('masks.png', 'choices.png'):
        assert np.asarray(Image.open(f'results/{name}')).std() > 10


@pytest.mark.full
@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--data-root', 'nowhere'], 'has no train; run tools/prepare_nuclei.py'),
        (['--data-root', 'nuclei', '--pretrained', 'none.pth'], 'train pretrain_stamps.py'),
        (['--seeds', '-1'], '--seeds must be an integer from 0 up'),
        (['--rates', '-1'], '--rates must be a positive number, got -1'),
    ],
)
def test_compare_says_what_is_missing(compared, capsys, arguments, message):
    with pytest.raises(SystemExit, match='2'):
        call('compare.py', '--out', 'other', *arguments)
    assert message in capsys.readouterr().err
    assert not Path('other').exists()


@pytest.mark.full
def test_the_demonstration_says_what_to_give(compared, capsys):
    with pytest.raises(SystemExit, match='2'):
        call('demo.py', '--wheel', 'missing.whl')
    assert 'missing.whl does not exist' in capsys.readouterr().err
