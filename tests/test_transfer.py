"""An exported subnet as the start of another training: other classes, images, data sets."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, call_tool
from mmengine.dataset import Compose
from mmengine.registry import MODELS
from mmpretrain.registry import DATASETS, TRANSFORMS
from PIL import Image
from tiny import SEARCHED, SPACE, images, randomize, tiny_config, tiny_model

from tas_lora import Subnet, UserError, apis, count_params, export_subnet, load_supernet
from tas_lora.models.checkpoint import adapt_to_start
from tas_lora.models.safe_load import read_state_dict
from tas_lora.models.transfer import resample_table

TRANSFER = sorted((ROOT / 'configs' / 'transfer').glob('*.py'))
ALONE = [ROOT / 'configs' / f'autoformer_{size}_subnet.py' for size in SEARCHED]
CHOSEN = Subnet(32, (3, 2, 3), (2.0, 4.0, 2.0))  # a subnet of the digits


@pytest.fixture
def exported(digits_config, tmp_path) -> Path:
    """A subnet of the digits' supernet, exported: 4 x 4 patches, offsets up to 3, 10 classes."""
    torch.manual_seed(0)
    supernet = load_supernet(digits_config('supernet'))
    return export_subnet(supernet, CHOSEN, tmp_path / 'exported')


@pytest.fixture
def fixed_config(digits_config, exported):
    """Makes configs that train the exported network on digits of another size and class count."""

    def make(classes: int = 10, side: int = 8, **backbone):
        cfg = digits_config('supernet', images=32)
        cfg.model.backbone.update(
            arch=str(exported / 'architecture.json'), img_size=side, **backbone
        )
        cfg.model.head.num_classes = cfg.data_preprocessor.num_classes = classes
        resize = [dict(type='Resize', scale=(side, side)), dict(type='PackInputs')]
        cfg.train_dataloader.dataset.dataset.dataset.pipeline = resize
        cfg.val_dataloader.dataset.dataset.pipeline = cfg.test_dataloader.dataset.pipeline = resize
        cfg.train_cfg = dict(type='tas_lora.ResumableTrainLoop', max_epochs=1, val_interval=1)
        cfg.val_cfg, cfg.test_cfg = dict(), dict()
        cfg.load_from = str(exported / 'weights.safetensors')
        return cfg

    return make


def train(cfg) -> tuple[dict, str]:
    """Train; returns the weights before the first step, and the log."""
    runner, start = apis.prepare_training(cfg), {}
    run = runner.train_loop.run

    def spy():
        start.update((name, value.clone()) for name, value in runner.model.state_dict().items())
        return run()

    runner.train_loop.run = spy
    runner.train()
    return start, ''.join(path.read_text() for path in Path(cfg.work_dir).glob('*/*.log'))


def state(**kwargs) -> dict:
    """Parameters of a tiny model; keyword arguments are those of its backbone."""
    config = tiny_config(mole=False)
    config['model']['backbone'].update(kwargs)
    del config['model']['head']['in_channels']  # follows the backbone
    return randomize(load_supernet(config)).state_dict(keep_vars=True)


def interpolated(table: np.ndarray, grids: tuple[int, int], max_offset: int) -> np.ndarray:
    """The rows of the offsets, column by column, by NumPy's clamping interpolation."""
    old, new = grids
    middle = len(table) // 2
    reach = min(middle - 1, old - 1)
    known = np.arange(-reach, reach + 1)
    wanted = np.arange(-max_offset, max_offset + 1) * old / new
    columns = table[middle - reach : middle + reach + 1].T
    return np.stack([np.interp(wanted, known, column) for column in columns], axis=1)


def test_an_export_runs_as_a_network_of_its_own(tmp_path):
    model = randomize(tiny_model(), std=0.3)
    for choice in (SPACE.smallest(), Subnet(24, (1, 2), (2.0, 1.0))):
        model.set_subnet(choice)
        folder = export_subnet(model, choice, tmp_path / 'out')
        config = tiny_config(mole=False, arch=choice)
        config['model']['backbone']['arch'] = str(folder / 'architecture.json')
        fixed = load_supernet(config, folder / 'weights.safetensors')
        assert sum(p.numel() for p in fixed.parameters()) == count_params(
            choice, **model.image_spec
        )
        with torch.no_grad():
            expected = model(images(), mode='tensor')
            assert (fixed(images(), mode='tensor') - expected).abs().max() <= 1e-5
    assert expected.std() > 0.1


@pytest.mark.parametrize(
    ('grids', 'offsets'),
    [
        ((14, 24), (14, 23)),  # AutoFormer from 224 to 384 pixels
        ((14, 24), (14, 14)),
        ((14, 7), (14, 14)),
        ((4, 6), (2, 5)),
        ((4, 4), (2, 3)),
        ((4, 4), (3, 1)),
        ((5, 1), (4, 2)),
    ],
)
def test_tables_are_interpolated_over_the_offsets_the_grid_had(grids, offsets):
    table = torch.randn(2 * offsets[0] + 2, 6, generator=torch.Generator().manual_seed(0))
    found = resample_table(table, grids, offsets[1])
    assert found.shape == (2 * offsets[1] + 2, 6)
    assert torch.equal(found[0], table[0])
    expected = interpolated(table.double().numpy(), grids, offsets[1])
    assert found[1:].numpy() == pytest.approx(expected, abs=1e-6)


def test_wider_clipping_on_the_same_grid_changes_nothing():
    small, config = tiny_model(mole=False), tiny_config(mole=False)
    config['model']['backbone']['max_relative_position'] = 3
    large = load_supernet(config)
    weights = dict(randomize(small).state_dict())
    adapt_to_start(weights, large.state_dict(keep_vars=True))
    large.load_state_dict(weights)
    with torch.no_grad():
        difference = large(images(), mode='tensor') - small(images(), mode='tensor')
    # Clipped at 2, offset 3 has the row of 2: so it does in the wider table.
    assert difference.abs().max() <= 1e-5


def test_nothing_changes_where_nothing_differs():
    weights = state()
    adapted = dict(weights)
    adapt_to_start(adapted, state())
    assert all(adapted[name] is weights[name] for name in weights)


def test_positions_follow_the_image():
    weights = {name: value.detach().clone() for name, value in state(img_size=16).items()}
    width = weights['backbone.pos_embed'].shape[2]
    row, column = np.divmod(np.arange(64), 8)
    field = np.full((64, width), 7.0)  # the same everywhere, but for two channels
    field[:, 0], field[:, 1] = row, column
    weights['backbone.pos_embed'][0, 1:] = torch.from_numpy(field)
    adapted = dict(weights)
    adapt_to_start(adapted, state(img_size=24))
    found = adapted['backbone.pos_embed']
    assert torch.equal(found[:, 0], weights['backbone.pos_embed'][:, 0])
    patches = found[0, 1:].unflatten(0, (12, 12))
    assert patches[..., 2:].numpy() == pytest.approx(7.0, abs=1e-5)
    # Where the centres of the new patches lie among those of the old. PyTorch's cubic kernel
    # (a = -0.75) is off by up to 0.05 on a slope, and bends at the edges.
    centres = (np.arange(12) + 0.5) * 8 / 12 - 0.5
    inside = slice(3, 9)
    assert patches[inside, 5, 0].numpy() == pytest.approx(centres[inside], abs=0.06)
    assert patches[5, inside, 1].numpy() == pytest.approx(centres[inside], abs=0.06)


def test_training_starts_from_an_export_of_other_images_and_classes(fixed_config, exported):
    cfg = fixed_config(classes=12, side=12, max_relative_position=5)
    start, log = train(cfg)
    assert 'The checkpoint has 10 classes, the config 12: the head starts anew.' in log
    assert '4 x 4 patches, the config 6 x 6: the position embedding is resized.' in log
    assert 'their tables are interpolated' in log
    weights = read_state_dict(exported / 'weights.safetensors')
    assert start['head.fc.weight'].shape == (12, 32)
    assert start['head.fc.weight'].std() > 0.05  # as the config initialises it
    tables = dict(key_rows='k.vertical', key_columns='k.horizontal')
    tables |= dict(value_rows='v.vertical', value_columns='v.horizontal')
    compared = 0
    for name, value in weights.items():
        block, _, kind = name.rpartition('.')
        if kind in tables:
            found = start[f'backbone.{block}.rel_pos_{tables[kind]}'][1:].numpy()
            assert found == pytest.approx(interpolated(value.numpy(), (4, 6), 5), abs=1e-6), name
        elif name != 'pos_embed' and not name.startswith('head.'):
            assert torch.equal(start[f'backbone.{name}'].flatten(), value.flatten()), name
        else:
            continue
        compared += 1
    assert compared == len(weights) - 3
    trained = read_state_dict(f'{cfg.work_dir}/epoch_1.pth')
    assert not torch.equal(trained['head.fc.weight'], start['head.fc.weight'])
    assert not torch.equal(trained['backbone.norm.weight'], start['backbone.norm.weight'])


def test_training_of_the_same_network_says_nothing(fixed_config, exported):
    start, log = train(fixed_config())
    assert 'Load checkpoint from' in log
    assert 'The checkpoint has' not in log
    assert 'interpolated' not in log
    weights = read_state_dict(exported / 'weights.safetensors')
    assert torch.equal(start['head.fc.weight'], weights['head.weight'])
    assert torch.equal(start['backbone.pos_embed'], weights['pos_embed'])


def test_resuming_does_not_adapt(fixed_config):
    cfg = fixed_config(classes=12, side=12)
    train(cfg)
    again = fixed_config(classes=12, side=12)
    again.load_from, again.resume = f'{cfg.work_dir}/epoch_1.pth', True
    again.train_cfg.update(max_epochs=2, allow_changes=True)
    again.work_dir = f'{cfg.work_dir}_resumed'
    start, log = train(again)
    assert 'starts anew' not in log
    assert 'interpolated' not in log
    before = read_state_dict(f'{cfg.work_dir}/epoch_1.pth')
    assert all(torch.equal(start[name], before[name]) for name in before)

    other = fixed_config(classes=10, side=8)
    other.load_from, other.resume = f'{cfg.work_dir}/epoch_1.pth', True
    with pytest.raises(UserError, match='tokens 37 in the checkpoint, 17 in the config; num_cl'):
        apis.train(other)


def test_the_test_tool_takes_the_export(fixed_config, digits_config, exported, tmp_path, capsys):
    cfg = fixed_config()
    cfg.dump(tmp_path / 'fixed.py')
    files = (tmp_path / 'fixed.py', exported / 'weights.safetensors')
    assert call_tool('test.py', *files, '--out', tmp_path / 'metrics.json') == 0
    torch.manual_seed(0)
    supernet = digits_config('supernet')
    torch.save(load_supernet(supernet).state_dict(), tmp_path / 'supernet.pth')
    expected = apis.evaluate(supernet, tmp_path / 'supernet.pth', dict(found=CHOSEN))
    metrics = json.loads((tmp_path / 'metrics.json').read_text())
    assert metrics == {'accuracy/top1': expected['found/accuracy/top1']}
    capsys.readouterr()
    assert call_tool('test.py', *files, '--subnet', exported / 'architecture.json') == 2
    assert 'tests one network' in capsys.readouterr().err


def test_testing_does_not_adapt(fixed_config, exported):
    message = 'num_classes 10 in the checkpoint, 12 in the config'
    with pytest.raises(UserError, match=message):
        apis.evaluate(fixed_config(classes=12), exported / 'weights.safetensors')
    with pytest.raises(UserError, match=message):
        load_supernet(fixed_config(classes=12), exported / 'weights.safetensors')


@pytest.mark.parametrize(
    ('backbone', 'message'),
    [
        (dict(patch_size=4, img_size=16), 'patch_size 2 in the checkpoint, 4 in the config'),
        (dict(in_channels=3), 'in_channels 1 in the checkpoint, 3 in the config'),
        (dict(head_dim=4), 'head_dim 8 in the checkpoint, 4 in the config'),
        (dict(arch=SPACE.smallest().to_dict()), 'embed_dim 24 in the checkpoint, 16 in the config'),
    ],
)
def test_what_cannot_be_adapted(backbone, message):
    with pytest.raises(UserError, match=message):
        adapt_to_start(state(), state(**backbone))


def test_experts_are_not_adapted_away():
    with pytest.raises(UserError, match='the checkpoint holds experts, the config none'):
        adapt_to_start(dict(tiny_model().state_dict()), state(img_size=16))


def test_patches_must_be_a_square():
    weights = state()
    weights['backbone.pos_embed'] = weights['backbone.pos_embed'][:, :-1]
    with pytest.raises(UserError, match='the checkpoint has 16 tokens, which is not a square'):
        adapt_to_start(weights, state())


def test_a_frozen_head_does_not_start_anew():
    weights = state()
    config = tiny_config()
    config['model']['head']['num_classes'] = 7
    with pytest.raises(UserError, match='num_classes 5 in the checkpoint, 7 in the config, whose'):
        adapt_to_start(weights, load_supernet(config).state_dict(keep_vars=True))


def test_experts_go_to_another_resolution():
    weights = dict(randomize(tiny_model()).state_dict())
    config = tiny_config()
    config['model']['backbone']['img_size'] = 12
    larger = load_supernet(config)
    experts = {name for name in weights if 'lora_' in name or name.startswith('router.')}
    assert len(experts) > 24  # two factors of four layers of three blocks, and the router
    adapt_to_start(weights, larger.state_dict(keep_vars=True))
    larger.load_state_dict(weights)
    assert all(torch.equal(larger.state_dict()[name], weights[name]) for name in experts)


def test_broken_safetensors(exported):
    torn = exported / 'weights.safetensors'
    torn.write_bytes(torn.read_bytes()[:500])
    with pytest.raises(UserError, match='is not a readable checkpoint') as caught:
        read_state_dict(torn)
    assert '\n' not in str(caught.value)


@pytest.fixture(scope='module')
def found_in_s(tmp_path_factory) -> Path:
    """An ``architecture.json`` of AutoFormer-S's published subnet."""
    path = tmp_path_factory.mktemp('exported') / 'architecture.json'
    path.write_text(json.dumps(dict(subnet=SEARCHED['s'].to_dict())))
    return path


@pytest.mark.full
@pytest.mark.parametrize('path', TRANSFER + ALONE, ids=lambda path: path.stem)
def test_configs_hold_arguments_that_exist(path):
    cfg = apis.load_config(path)
    folder = 'autoformer_s' if path in TRANSFER else path.stem.removesuffix('_subnet')
    assert cfg.load_from == f'exported/{folder}/weights.safetensors'
    assert cfg.model.backbone.arch == f'exported/{folder}/architecture.json'
    assert cfg.model.head.num_classes == cfg.data_preprocessor.num_classes
    header = path.read_text().split('"""')[1]
    assert 'op-1' in header
    assert 'not run here' in header
    assert f'configs/{path.relative_to(ROOT / "configs")}' in header


@pytest.mark.full
@pytest.mark.parametrize('path', TRANSFER, ids=lambda path: path.stem)
def test_images_of_transfer_configs_fit_the_network(path, found_in_s, tmp_path):
    cfg = apis.load_config(path, {'model.backbone.arch': str(found_in_s)})
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    side = model.image_spec['img_size']
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((300, 260)).save(tmp_path / 'x.jpg')
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        dataset = cfg[loader].dataset
        dataset = dataset.get('dataset', dataset)
        assert DATASETS.get(dataset.type) is not None
        pipeline = Compose([TRANSFORMS.build(transform) for transform in dataset.pipeline])
        is_file = dataset.pipeline[0].type == 'LoadImageFromFile'
        image = dict(img_path=str(tmp_path / 'x.jpg')) if is_file else dict(img=pixels)
        packed = pipeline(image | dict(gt_label=1))
        assert packed['inputs'].shape == (3, side, side)
        assert packed['inputs'].dtype == torch.uint8


@pytest.mark.full
def test_the_larger_images_of_cifar_start_from_the_smaller(found_in_s):
    arch = {'model.backbone.arch': str(found_in_s)}
    configs = {
        side: apis.load_config(ROOT / f'configs/transfer/s_cifar10{side}.py', arch)
        for side in ('', '_384')
    }
    small, large = (load_supernet(configs[side]) for side in ('', '_384'))
    weights = dict(small.state_dict())
    adapt_to_start(weights, large.state_dict(keep_vars=True))
    large.load_state_dict(weights)
    table = 'backbone.blocks.3.attn.rel_pos_v.horizontal'
    expected = interpolated(small.state_dict()[table].numpy(), (14, 24), 23)
    assert large.state_dict()[table][1:].numpy() == pytest.approx(expected, abs=1e-6)


def annotations(**changes) -> str:
    files = [dict(id=7 + i, file_name=f'train_val2019/Birds/{i}/x.jpg') for i in range(3)]
    pairs = [(9, 30), (7, 10), (8, 30)]
    content = dict(
        images=files,
        annotations=[dict(id=i, image_id=i, category_id=c) for i, c in pairs],
        categories=[dict(id=30, name='Parus major'), dict(id=10, name='Apus apus')],
    )
    content |= changes
    return json.dumps({key: value for key, value in content.items() if value is not None})


def inaturalist(root: Path, **kwargs):
    return DATASETS.build(dict(type='tas_lora.INaturalist2019', data_root=str(root), **kwargs))


def test_inaturalist_reads_paths_labels_and_names(tmp_path):
    (tmp_path / 'val2019.json').write_text(annotations())
    dataset = inaturalist(tmp_path, split='val')
    found = [(d['img_path'], d['gt_label']) for d in map(dataset.get_data_info, range(3))]
    birds = f'{tmp_path}/train_val2019/Birds'
    assert found == [(f'{birds}/2/x.jpg', 1), (f'{birds}/0/x.jpg', 0), (f'{birds}/1/x.jpg', 1)]
    assert dataset.CLASSES == ('Apus apus', 'Parus major')
    (tmp_path / 'train2019.json').write_text(annotations(categories=None))
    dataset = inaturalist(tmp_path, pipeline=[dict(type='LoadImageFromFile')])
    assert dataset.get_gt_labels().tolist() == [30, 10, 30]
    Path(f'{birds}/2').mkdir(parents=True)
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(f'{birds}/2/x.jpg')
    assert dataset[0]['img'].shape == (4, 5, 3)


def test_inaturalist_says_what_is_wrong(tmp_path):
    with pytest.raises(UserError, match=r'train2019\.json cannot be read: No such file'):
        inaturalist(tmp_path)
    (tmp_path / 'train2019.json').write_text('{"images": [')
    with pytest.raises(UserError, match=r'train2019\.json is not JSON'):
        inaturalist(tmp_path)
    for broken, lacking in (
        (dict(images=None), "KeyError: 'images'"),
        (dict(annotations=None), "KeyError: 'annotations'"),
        (dict(annotations=[dict(image_id=5, category_id=10)]), 'KeyError: 5'),
        (dict(annotations=[dict(image_id=7, category_id=11)]), 'KeyError: 11'),
        (dict(images=[dict(id=7)]), "KeyError: 'file_name'"),
    ):
        (tmp_path / 'train2019.json').write_text(annotations(**broken))
        with pytest.raises(UserError, match=lacking):
            inaturalist(tmp_path)
    with pytest.raises(UserError, match="split must be 'train' or 'val', got 'test'"):
        inaturalist(tmp_path, split='test')
