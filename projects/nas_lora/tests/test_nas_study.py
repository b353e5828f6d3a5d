"""The study: what its methods train, how rates are chosen, and its tables."""

import json
from statistics import mean

import numpy as np
import pytest
import timm
import torch
from mmpretrain.models import VisionTransformer
from mmpretrain.structures import DataSample
from nas_lora.cells.operations import OPERATIONS
from nas_lora.evaluation import Scorer
from nas_lora.segmentation.segmentor import Segmentor
from nas_lora.study.comparison import MASKS, rates_of, read_masks, trainable, write_masks
from nas_lora.study.figures import draw_masks, draw_scores
from nas_lora.study.methods import METHODS, Run
from nas_lora.study.records import add_record, read_records, rounded
from nas_lora.study.report import (
    ablations_table,
    costs_table,
    differences_table,
    levels_table,
    mean_choices,
    methods_table,
    read_study,
)
from nas_lora.study.tuning import HIGHER_RATES, TUNING_SEED, candidates, chosen_rates
from nas_lora.vits.adapt import AdaptedModel
from nas_lora.vits.encoders import ViTEncoder
from PIL import Image
from tiny_encoder import tiny_encoder
from torch._subclasses import FakeTensorMode

from tas_lora import UserError

WIDTH, BLOCKS = 384, 2
LORA = WIDTH + 3 * WIDTH  # weights of one rank beside a fused qkv


def cell(channels: int) -> int:
    """Weights of a cell: depthwise and pointwise convolutions, 3 x 3 and 5 x 5, two of each."""
    return 2 * (9 + 25) * channels + 4 * channels**2


def nas(rank: int, weights: int, alphas: int = 8) -> int:
    return 3 * (2 * rank * WIDTH + weights + alphas)


@pytest.fixture(scope='module')
def network():
    """Two blocks of the width of ViT-S."""
    sizes = dict(img_size=28, patch_size=14, embed_dim=WIDTH, depth=BLOCKS, num_heads=6)
    return timm.models.vision_transformer.VisionTransformer(**sizes, num_classes=0).state_dict()


def trained_in_a_block(method: str, network: dict) -> float:
    sizes = dict(img_size=28, patch_size=14, embed_dim=WIDTH, depth=BLOCKS, num_heads=6)
    vit = timm.models.vision_transformer.VisionTransformer(**sizes, num_classes=0)
    vit.load_state_dict(network)
    decoder = Run('nuclei', method, 0).config().model.model.decoder
    model = Segmentor(dict(type='nas_lora.ViTEncoder', source=vit), decoder)
    own = Run('nuclei', method, 0).config().model
    options = {k: own[k] for k in ('adapter', 'targets', 'layers', 'trainable')}
    return trainable(AdaptedModel(model, **options).model.encoder) / BLOCKS


@pytest.mark.parametrize(
    ('method', 'expected'),
    [
        ('decoder', 0),
        ('lora', 5 * LORA),
        ('conv_lora', 4 * LORA + 8 * (9 * 4 * 4 + 4) + 2 * 8 * 4),
        ('adapter', 2 * (2 * 4 * WIDTH + WIDTH + 4)),
        ('vpt', 20 * WIDTH),
        ('nas_lora', nas(3, cell(3))),
        ('uniform', nas(3, cell(3), 0)),
        ('random', nas(3, cell(3), 0)),
        ('tb0', nas(3, cell(3))),
        ('ratio1', nas(3, cell(1))),
        ('ratio2', nas(3, cell(2))),
        ('rank1', nas(1, cell(1))),
        ('rank8', nas(8, cell(8))),
        ('first', nas(3, cell(3)) / 2),
        ('no_conv', nas(3, 0, 4)),
        ('no_pool', nas(3, cell(3), 6)),
        ('only_skip_connect', nas(3, 0, 0)),
        ('only_dil_conv_5x5', nas(3, 25 * 3 + 9, 0)),
    ],
)
def test_methods_train_what_they_say_in_a_block(method, expected, network):
    assert trained_in_a_block(method, network) == expected
    equal = ('lora', 'conv_lora', 'adapter', 'vpt', 'nas_lora')
    if method in equal:
        assert expected == pytest.approx(nas(3, cell(3)), rel=0.1)


@pytest.mark.parametrize('data', ['classes', 'sam'])
def test_methods_differ_in_what_they_train_only(data):
    free = ('adapter', 'targets', 'layers', 'trainable')
    known = []
    for method in METHODS:
        config = Run(data, method, 0).config().to_dict()
        for part in ('optim_wrapper', 'custom_hooks'):
            config.pop(part)
        if METHODS[method].epoch_share < 1:
            config['train_cfg']['max_epochs'] = known[0]['train_cfg']['max_epochs']
        config['model'] = {k: v for k, v in config['model'].items() if k not in free}
        known.append(config)
    assert all(config == known[0] for config in known)


@pytest.mark.parametrize(
    ('method', 'rate', 'alpha', 'expected'),
    [
        ('lora', 0.5, None, dict(weights=0.5)),
        ('nas_lora', 0.5, 30, dict(weights=0.5, alpha=15.0)),
        ('tb0', None, None, dict(weights=3e-3, alpha=3e-2)),
        ('full', 1e-5, None, {'weights': 3e-3, 'model.encoder': 1e-5}),
    ],
)
def test_a_run_has_its_own_seed_and_rates(method, rate, alpha, expected):
    cfg = Run('nuclei', method, 7, rate, alpha).config()
    assert cfg.randomness.seed == 7
    assert rates_of(cfg) == pytest.approx(expected)


def test_stages_are_shares_of_the_epochs():
    epochs = {
        m: Run('emoji', m, 0).config().custom_hooks[0]['weight_epochs']
        for m in ('tb0', 'tb8', 'nas_lora', 'tb2')
    }
    assert epochs == dict(tb0=0, tb8=1, nas_lora=2, tb2=4)  # of 8
    assert not Run('emoji', 'uniform', 0).config().custom_hooks
    # As many batches as a searched cell's weights get: two epochs, and every other batch of six.
    assert Run('emoji', 'uniform_fewer', 0).config().train_cfg.max_epochs == 2 + 6 / 2


def record_of(run: Run, val: float, test: float = 0.5, **more) -> dict:
    scores = dict(val={'iou': val}, test={'iou': test})
    base = dict(run=run.name, data=run.data, method=run.method, seed=run.seed, scores=scores)
    return base | dict(trainable_in_encoder=91_872, choices={}) | more


def test_the_rate_that_is_best_on_val_is_chosen_and_shared():
    runs = candidates('nuclei', 'decoder')
    assert [run.rate for run in runs] == list(HIGHER_RATES)
    assert {run.seed for run in runs} == {TUNING_SEED}
    records = [record_of(r, v, 1 - v) for r, v in zip(runs, (0.2, 0.4, 0.3), strict=True)]
    known = {r['run']: r for r in records}
    assert chosen_rates('nuclei', 'decoder', known) == (HIGHER_RATES[1], None)
    assert chosen_rates('nuclei', 'lora', known) == (None, None)
    assert candidates('nuclei', 'tb0') == []
    best = candidates('nuclei', 'nas_lora')[-1]
    known = {best.name: record_of(best, 0.9)}
    assert chosen_rates('nuclei', 'tb0', known) == (best.rate, best.alpha)


def test_records_survive_a_process_killed_while_it_wrote(tmp_path):
    path = tmp_path / 'new' / 'nuclei.jsonl'
    add_record(path, record_of(Run('nuclei', 'lora', 0), rounded(1 / 3)))
    path.write_text(path.read_text() + '{"run":"b","va')
    assert list(read_records(path)) == ['nuclei_lora_seed0']
    add_record(path, record_of(Run('nuclei', 'nas_lora', 1, 1e-5, 30), 0.5))
    names = ['nuclei_lora_seed0', 'nuclei_nas_lora_rate1e-05_alpha30_seed1']
    assert list(read_records(path)) == names


@pytest.mark.parametrize(
    'line',
    [
        '[1]',
        '{',
        '{}',
        '[' * 100_000,
        json.dumps(dict(run='nuclei_os_seed0', data='nuclei', method='os', seed=0)),
        json.dumps(dict(run='../nuclei_lora_seed0', data='nuclei', method='lora', seed=0)),
        json.dumps(dict(run='nuclei_lora_seed0', data='nuclei', method='lora', seed=1)),
        json.dumps(dict(run='nuclei_lora_seed0', data='nuclei', method=['lora'], seed=0)),
    ],
)
def test_what_a_stranger_wrote_is_no_record(tmp_path, line):
    path = tmp_path / 'nuclei.jsonl'
    path.write_text(line + '\n')
    with pytest.raises(UserError, match=r'line 1 of .*nuclei\.jsonl is not a record'):
        read_records(path)


def test_a_record_without_scores_is_refused_by_name(tmp_path):
    add_record(tmp_path / 'nuclei.jsonl', record_of(Run('nuclei', 'lora', 0), 0.5, scores={}))
    with pytest.raises(UserError, match='nuclei_lora_seed0 in .* lacks a number of the tables'):
        read_study(tmp_path)


def test_rounding_reaches_into_lists_and_dicts_and_keeps_small_rates():
    values = dict(a=[1.23456, 'x', (2, 0.00001)], b=0.0123456)
    assert rounded(values) == dict(a=[1.2346, 'x', [2, 0.00001]], b=0.01235)


@pytest.fixture
def study(tmp_path):
    """Records of three seeds: NAS-LoRA is better than the uniform mixture by 1, 2 and 3 points."""
    chances = {
        f'encoder.vit.blocks.{i}.attn.qkv.q': dict.fromkeys(OPERATIONS, 1 / 8) for i in (0, 1)
    }
    for seed in range(3):
        for method, test in (
            ('nas_lora', 0.6 + 0.01 * (seed + 1)),
            ('uniform', 0.6),
            ('tb0', 0.7),
        ):
            run = Run('emoji', method, seed)
            more = dict(choices=chances) if method == 'nas_lora' else {}
            add_record(tmp_path / 'emoji.jsonl', record_of(run, 0.1, test, **more))
    for number, method in enumerate(m for m in METHODS if m.startswith('only_')):
        add_record(tmp_path / 'emoji.jsonl', record_of(Run('emoji', method, 0), 0.01 * number, 0.6))
    add_record(tmp_path / 'emoji.jsonl', record_of(Run('emoji', 'lora', TUNING_SEED), 0.9, 0.9))
    return tmp_path


def test_tables_by_hand(study):
    found = read_study(study)
    methods = methods_table(found).splitlines()
    assert methods[0] == '| method | trained in the encoder | emoji |'
    assert '| NAS-LoRA | 91,872 | 62.0 +-1.0 |' in methods
    assert '| uniform mixture | 91,872 | 60.0 +-0.0 |' in methods
    assert '| best operation alone | 91,872 | 60.0 |' in methods
    assert not [line for line in methods if 'LoRA, rank 5' in line]  # tuned, not compared
    assert '| T_B 0 | 91,872 | 70.0 +-0.0 |' in ablations_table(found)
    # Student's test of 1, 2, 3: t = 2 / (1 / sqrt(3)) = 3.46 with 2 degrees of freedom, p = .0742.
    differences = differences_table(found).splitlines()
    assert '| uniform mixture | +2.00 +-1.00 | +2.00 +-1.00 (3) | 0.074 |' in differences


def test_the_table_of_levels_by_hand():
    def record(seed: int, after: float, difference: float) -> dict:
        kept = dict(scores=dict(iou=after), difference=difference)
        refused = dict(refused='max_pool_3x3 is in the way')
        levels = dict(
            dropped=dict(scores=dict(iou=0.2), difference=1.0),
            fold=refused,
            exact=refused,
            least_squares=kept | dict(r2=dict(a=0.5 + 0.1 * seed, b=0.9)),
            distilled=kept,
        )
        return dict(data='emoji', method='nas_lora', seed=seed, scores=dict(iou=0.6), levels=levels)

    last = levels_table([record(0, 0.59, 0.02), record(1, 0.58, 0.04)]).splitlines()[-1]
    assert last == (
        '| NAS-LoRA, emoji | 2 | 60.0 | -40.00 (1) | refused | refused '
        '| -1.50 (0.03) | -1.50 (0.03) | 0.50 to 0.90 |'
    )


def test_the_table_of_costs_by_hand():
    def cost(full: float, lora: float) -> dict:
        ratios = dict(to_full=dict(median=full), to_lora=dict(median=lora))
        sizes = dict(trainable=1234, launches=dict(weights=567), saved_mib=8.9, peak_mib=10.1)
        return sizes | ratios

    records = dict(
        vit_s=dict(methods=dict(lora=cost(0.5, 1.0))), sam=dict(methods=dict(lora=cost(0.25, 1.0)))
    )
    last = costs_table(records).splitlines()[-1]
    assert last == '| lora | 1,234 | 0.50 (1.00) | 0.25 (1.00) | 567 | 9 MiB | 10 MiB |'


def test_a_folder_without_records_is_refused(tmp_path):
    with pytest.raises(UserError, match=r'has no records; tools/compare\.py writes them'):
        read_study(tmp_path)


def test_choices_are_means_over_seeds():
    layer = 'model.encoder.layers.2.attn.qkv.k'
    runs = {s: dict(choices={layer: dict(none=x)}) for s, x in enumerate((0.2, 0.6))}
    assert mean_choices(runs) == {'2.k': dict(none=pytest.approx(mean((0.2, 0.6))))}


def test_masks_come_back_as_they_were_written(tmp_path):
    masks = torch.rand(5, 12, 12, generator=torch.Generator().manual_seed(0)).numpy()
    write_masks(masks, tmp_path / 'masks.png')
    read = read_masks(tmp_path / 'masks.png')
    assert read.shape == masks.shape
    assert abs(read - masks).max() <= 0.5 / 255 + 1e-6


def test_masks_predicted_on_a_gpu_arrive_on_the_cpu(monkeypatch):
    with FakeTensorMode():
        samples = [DataSample(pred_mask=torch.zeros(4, 4, device='cuda')) for _ in range(2)]
        monkeypatch.setattr(Scorer, '_outputs', lambda scorer, model: [({}, samples)])
        found = Scorer.masks(object.__new__(Scorer), None)
    assert found.shape == (2, 4, 4)
    assert found.device.type == 'cpu'


def test_figures_show_something(study, tmp_path):
    draw_scores(read_study(study), tmp_path / 'scores.png')
    for folder in ('images', 'masks'):
        (tmp_path / 'test' / folder).mkdir(parents=True)
        for i in range(3):
            noise = np.random.default_rng(i).integers(0, 255, (28, 28, 3), np.uint8)
            Image.fromarray(noise).save(tmp_path / 'test' / folder / f'{i}.png')
    runs = {'LoRA': dict(run='a'), 'NAS-LoRA': dict(run='b')}
    for run in 'ab':
        (tmp_path / run).mkdir()
        write_masks(np.random.default_rng(0).random((3, 28, 28)), tmp_path / run / MASKS)
    draw_masks(runs, tmp_path, tmp_path / 'test', [0, 2], tmp_path / 'masks.png')
    for name in ('scores.png', 'masks.png'):
        assert np.asarray(Image.open(tmp_path / name)).std() > 10
    with pytest.raises(UserError, match='the sheet of masks cannot be drawn'):
        draw_masks(runs, tmp_path, tmp_path / 'none', [0], tmp_path / 'masks.png')


def test_an_encoder_gives_what_its_library_computes():
    vit = timm.create_model('vit_tiny_patch16_224', img_size=32, num_classes=0).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens = vit.forward_features(images)
        found = {out: ViTEncoder(vit, out=out)(images)[0] for out in ('map', 'token', 'mean')}
    assert torch.equal(found['token'], tokens[:, 0])
    assert torch.allclose(found['mean'], tokens[:, 1:].mean(1))
    for y in range(2):
        for x in range(2):
            assert torch.equal(found['map'][:, :, y, x], tokens[:, 1 + 2 * y + x])


@pytest.mark.parametrize('out_type', ['cls_token', 'avg_featmap'])
@torch.no_grad()
def test_an_encoder_takes_a_model_of_mmpretrain_with_any_output(out_type):
    arch = dict(embed_dims=24, num_layers=1, num_heads=2, feedforward_channels=48)
    vit = VisionTransformer(arch, 32, 8, out_type=out_type)
    vit.eval()
    images = torch.randn(2, 3, 32, 32)
    own = vit(images)[0]
    found = {out: ViTEncoder(vit, out=out)(images)[0] for out in ('map', 'token', 'mean')}
    assert found['map'].shape == (2, 24, 4, 4)
    assert torch.allclose(found['map'].mean((2, 3)), found['mean'], atol=1e-6)
    expected = found['token'] if out_type == 'cls_token' else vit.ln2(found['mean'])
    assert torch.allclose(own, expected, atol=1e-6)


def test_images_of_another_shape_are_refused():
    sizes = dict(patch_size=16, embed_dim=64, depth=1, num_heads=2, num_classes=0)
    vit = timm.models.vision_transformer.VisionTransformer(
        img_size=(16, 64), dynamic_img_size=True, **sizes
    )
    encoder = ViTEncoder(vit)
    assert encoder(torch.zeros(1, 3, 16, 64))[0].shape == (1, 64, 1, 4)
    for size in ((64, 16), (32, 128)):
        with pytest.raises(UserError, match='do not give the 1 x 4 patches of the model'):
            encoder(torch.zeros(1, 3, *size))


def test_an_encoder_refuses_what_it_cannot_be():
    vit = timm.create_model('vit_tiny_patch16_224', img_size=32, num_classes=0)
    with pytest.raises(UserError, match=r"ViTEncoder.out must be one of 'map'.*got 'tokens'"):
        ViTEncoder(vit, out='tokens')
    with pytest.raises(UserError, match='ViTEncoder.source'):
        ViTEncoder(torch.nn.Linear(2, 2))
    for registers in (0, 4):
        plain = timm.models.vision_transformer.VisionTransformer(
            img_size=32, embed_dim=64, depth=1, num_heads=2, class_token=False, global_pool='avg',
            reg_tokens=registers,
        )  # fmt: skip
        with pytest.raises(UserError, match="no class token; use 'mean'"):
            ViTEncoder(plain, out='token')
    with pytest.raises(UserError, match='a ViTSAM gives a map; it is an encoder by itself'):
        ViTEncoder(tiny_encoder())
    with pytest.raises(UserError, match='out_channels is 192, Segmentor.decoder.in_channels'):
        Segmentor(dict(type='nas_lora.ViTEncoder', source=vit), dict(type='nas_lora.MaskDecoder'))
