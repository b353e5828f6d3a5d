"""Data sets that do not mean what a run believes: names, files left out, images seen before."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import call_tool
from mmengine.registry import init_default_scope
from mmpretrain.datasets import MNIST
from mmpretrain.registry import DATASETS
from PIL import Image

from tas_lora import UserError, apis
from tas_lora.datasets.agreement import (
    check_built,
    check_draws,
    check_recorded_draws,
    check_same_classes,
    check_sources,
    trained_classes,
)
from tas_lora.datasets.idx_files import check_idx_files
from tas_lora.datasets.image_depth import refuse_deep
from tas_lora.datasets.replay import ReplayDataset
from tas_lora.engine.runner.resume_check import recorded_run, run_record
from tas_lora.export.data import class_names

NAMES = ('ant', 'bird', 'cat')


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmpretrain')


def draw(root: Path, names=NAMES, count: int = 2, suffix: str = 'png') -> Path:
    for name in names:
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new('L', (8, 8)).save(root / name / f'{i}.{suffix}')
    return root


def folder(root, kind: str = 'CustomDataset', **arguments) -> dict:
    return dict(type=kind, data_root=str(root), pipeline=[dict(type='PackInputs')], **arguments)


def named(root, names=NAMES, **arguments) -> dict:
    return folder(root, metainfo=dict(classes=list(names)), **arguments)


def loaders(**datasets) -> dict:
    return {f'{name}_dataloader': dict(dataset=config) for name, config in datasets.items()}


def refused(cfg: dict) -> str:
    with pytest.raises(UserError) as caught:
        check_sources(cfg, tuple(cfg))
    return str(caught.value)


def test_a_folder_with_another_name_is_named(tmp_path):
    root = draw(tmp_path, ('ant', 'bird', 'dog'))
    message = refused(loaders(test=named(root)))
    assert message.startswith(
        f"test_dataloader.dataset: {root} has 'dog', not among the classes and lacks 'cat' of the "
        'classes.'
    )


def test_hidden_folders_are_no_classes(tmp_path):
    root = draw(tmp_path, ('.ipynb_checkpoints', *NAMES, 'bird/.thumbnails'))
    check_sources(loaders(test=named(root)), ('test_dataloader',))
    data = DATASETS.build(folder(root))
    assert data.metainfo['classes'] == NAMES
    assert data.get_gt_labels().tolist() == [0, 0, 1, 1, 2, 2]
    shutil.rmtree(root / 'bird')  # as many folders as classes, with the hidden one
    assert f"{root} lacks 'bird' of the classes." in refused(loaders(test=named(root)))


def test_names_are_in_the_order_of_folders_or_say_theirs(tmp_path):
    root = draw(tmp_path)
    message = refused(loaders(train=named(root, ('cat', 'ant', 'bird'))))
    assert "name 0 is 'cat', folder 0 is 'ant'; sort them" in message
    animals = ['Formica', 'Aves', 'Felis']
    assert "has 'ant', 'bird', 'cat', not among" in refused(loaders(train=named(root, animals)))
    meta = dict(classes=animals, folders=list(NAMES))
    check_sources(loaders(train=folder(root, metainfo=meta)), ('train_dataloader',))
    meta['folders'] = list(reversed(NAMES))
    assert 'sort them' in refused(loaders(train=folder(root, metainfo=meta)))
    meta['folders'] = ['ant']
    assert 'must be lists of equal length' in refused(loaders(train=folder(root, metainfo=meta)))


@pytest.mark.parametrize('kind', ['CustomDataset', 'ImageNet'])
def test_folders_of_one_config_are_compared(tmp_path, kind):
    """ImageNet's folders have other names than its classes."""
    train, test = draw(tmp_path / 'train'), draw(tmp_path / 'test', ('ant', 'bird', 'cow'))
    split = dict(type='tas_lora.HeldOutSplit', part='train', size=1, dataset=folder(train, kind))
    repeated = dict(type='RepeatDataset', times=2, dataset=split)
    both = dict(type='ConcatDataset', datasets=[folder(train, kind), folder(test, kind)])
    for other in (folder(test, kind), dict(type='RepeatDataset', times=2, dataset=both)):
        message = refused(loaders(train=repeated, val=other))
        assert "has 'cow', not among train_dataloader.dataset.dataset.dataset" in message
    with pytest.raises(UserError, match="has 'cow', not among"):  # a test that comes later
        check_sources(loaders(train=repeated, test=folder(test, kind)), ('train_dataloader',))
    gone = folder(tmp_path / 'gone', kind)
    check_sources(loaders(train=repeated, test=gone), ('train_dataloader',))


def test_what_is_left_out_is_counted(tmp_path, capsys):
    root = draw(tmp_path)
    draw(root, ('bird',), 3, 'webp')
    (root / 'cat' / 'deep').mkdir()
    (root / 'cat' / 'deep' / 'notes.txt').touch()
    (root / 'list.csv').touch()
    (root / '.DS_Store').touch()
    check_sources(loaders(train=folder(root), val=folder(root)), ('train_dataloader',))
    log = capsys.readouterr().out
    assert f'5 of 11 files in {root} are left out: 3 .webp, 1 .txt, 1 .csv outside of' in log
    taken = folder(root, extensions=['.png', '.webp', '.txt'])
    check_sources(loaders(train=taken), ('train_dataloader',))
    assert '1 of 11 files' in capsys.readouterr().out


def test_a_class_that_ends_without_an_image_is_refused(tmp_path, capsys):
    root = draw(tmp_path, ('ant', 'bird'))
    (root / 'cat').mkdir()
    assert f"1 class has no image in {root} ('cat'); add some" in refused(
        loaders(train=folder(root))
    )
    check_sources(loaders(test=named(root)), ('test_dataloader',))  # a test may lack a class
    assert f"1 class has no image in {root} ('cat')" in capsys.readouterr().out
    draw(root, ('cat',), 4, 'webp')
    for loader in ('train', 'test'):
        message = refused(loaders(**{loader: folder(root)}))
        assert '4 .webp left out; taken are .bmp, .jpeg' in message


def digit_files(root: Path, digits_root: Path) -> Path:
    return Path(shutil.copytree(digits_root, root))


@pytest.mark.parametrize(
    ('name', 'change', 'message'),
    [
        (
            'train-labels-idx1-ubyte',
            lambda old: old[:4] + (1436).to_bytes(4, 'big') + old[8:-1],
            '{0}/train-images-idx3-ubyte has 1,437 images, but {0}/train-labels-idx1-ubyte has '
            '1,436 labels',
        ),
        ('train-images-idx3-ubyte', lambda old: old[:-1], '{0}/{1} has 91,983 bytes, its header'),
        ('train-images-idx3-ubyte', lambda old: b'\x1f\x8b' + old, '{0}/{1} is not an idx file'),
        ('train-labels-idx1-ubyte', lambda old: old[:6], '{0}/{1} is not an idx file'),
        ('t10k-labels-idx1-ubyte', None, 'there is no file {0}/{1}; MNIST needs it'),
    ],
)
def test_idx_files_that_do_not_fit(tmp_path, digits_root, digits_config, name, change, message):
    root = digit_files(tmp_path / 'digits', digits_root)
    content = (root / name).read_bytes()
    (root / name).unlink() if change is None else (root / name).write_bytes(change(content))
    cfg = digits_config('supernet')
    cfg.train_dataloader.dataset.dataset.dataset.data_root = str(root)
    with pytest.raises(UserError) as caught:
        apis.check_training(cfg)
    assert message.format(root, name) in str(caught.value)
    assert str(caught.value).startswith('train_dataloader.dataset.dataset.dataset: ')


def test_idx_files_of_the_test(tmp_path, digits_root):
    root = digit_files(tmp_path / 'digits', digits_root)
    path = root / 't10k-labels-idx1-ubyte'
    path.write_bytes(path.read_bytes()[:-1])
    for test_mode in (False, True):
        config = dict(type='MNIST', data_root=str(root), test_mode=test_mode, lazy_init=True)
        if not test_mode:
            check_idx_files(DATASETS.build(config))
    with pytest.raises(UserError, match='t10k-labels-idx1-ubyte has 367 bytes, its header'):
        check_idx_files(DATASETS.build(config))


DEEP = np.arange(192, dtype=np.uint16).reshape(8, 8, 3) * 16
FLAT = DEEP.astype(np.uint8)
IMAGES = [
    *((f'deep.{suffix}', DEEP, True) for suffix in ('png', 'tif', 'ppm')),
    *((f'grey.{suffix}', DEEP[..., 0], True) for suffix in ('png', 'tif', 'pgm')),
    ('float.tif', DEEP.astype(np.float32), True),
    *((f'flat.{suffix}', DEEP.astype(np.uint8), False) for suffix in ('png', 'tif', 'ppm', 'jpg')),
    *(
        (f'bytes.{suffix}', DEEP[..., 0].astype(np.uint8), False)
        for suffix in ('png', 'pgm', 'bmp')
    ),
]


@pytest.mark.parametrize(('name', 'pixels', 'is_deep'), IMAGES)
def test_images_of_more_than_8_bits(tmp_path, name, pixels, is_deep):
    path = tmp_path / 'ant' / name
    path.parent.mkdir()
    assert cv2.imwrite(str(path), pixels)
    steps = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
    data = ReplayDataset(folder(tmp_path) | dict(pipeline=steps), replace=False)
    (sample,) = data.__getitems__([0])
    reason = f'image {path} has more than 8 bits per channel; save it with 8'
    assert sample.get('unreadable') == (reason if is_deep else None)
    if is_deep:
        with pytest.raises(UserError, match='has more than 8 bits per channel'):
            refuse_deep(str(path))
        steps[0]['color_type'] = 'unchanged'  # all bits are read
        data = ReplayDataset(folder(tmp_path) | dict(pipeline=steps), replace=False)
        assert 'unreadable' not in data.__getitems__([0])[0]


def test_plain_text_pixels_and_damage_are_left_to_the_decoder(tmp_path):
    path = tmp_path / 'image.pgm'
    path.write_text('P2\n# 4095\n2 1\n255\n1 2\n')
    refuse_deep(str(path))
    path.write_text('P2\n# 255\n2 1\n4095\n1 2\n')
    with pytest.raises(UserError, match='more than 8 bits'):
        refuse_deep(str(path))
    for content in (b'', b'P2', b'II*\0', b'\x89PNG\r\n\x1a\n', b'MM\0*\0\0\0\x08\xff\xff'):
        path.write_bytes(content)
        refuse_deep(str(path))
    refuse_deep(str(tmp_path))
    refuse_deep('image 5')


def held(part: str, dataset: dict, **arguments) -> dict:
    return dict(type='tas_lora.HeldOutSplit', part=part, dataset=dataset, **arguments)


def fold(test_mode: bool, dataset: dict, **arguments) -> dict:
    return dict(type='KFoldDataset', test_mode=test_mode, dataset=dataset, seed=0, **arguments)


DRAWS = [
    (held('train', {}, size=6), held('heldout', {}, size=6), True),
    (held('train', {}, size=6), held('heldout', {}, size=5), True),  # among the first six
    (held('train', {}, size=6), held('heldout', {}, size=7), False),
    (held('train', {}, size=6), held('heldout', {}, size=6, seed=1), False),
    (held('train', {}, size=12), held('heldout', {}, size=12, stratify=True), False),
    (held('train', {}, size=6), held('train', {}, size=6), False),
    (held('heldout', {}, size=6), held('train', {}, size=6), True),
    ({}, held('heldout', {}, size=6), False),
    (held('train', {}, size=6), {}, False),
    (fold(False, {}), fold(True, {}), True),
    (fold(False, {}), fold(True, {}, fold=1), False),
    (fold(True, {}), fold(True, {}, fold=1), True),
    (fold(False, {}, fold=1), held('heldout', {}, size=6), False),
    # A split of a split: what is held out of the whole is in no part of the rest.
    (held('train', held('train', {}, size=6), size=4), held('heldout', {}, size=6), True),
    (
        held('train', held('train', {}, size=6), size=4),
        held('heldout', held('train', {}, size=6), size=4),
        True,
    ),
    (
        held('train', held('train', {}, size=6), size=4),
        held('heldout', held('train', {}, size=7), size=4),
        False,
    ),
]


def around(wrapper: dict, leaf: dict) -> dict:
    """A wrapper's config with a data set where it has an empty one."""
    if not wrapper:
        return leaf
    return wrapper | dict(dataset=around(wrapper['dataset'], leaf))


@pytest.mark.parametrize(('train', 'val', 'disjoint'), DRAWS)
def test_which_images_a_config_draws(tmp_path, train, val, disjoint):
    """The truth comes from the images that the data sets hold."""
    leaf = folder(draw(tmp_path / 'data', count=10))
    train, val = around(train, leaf), around(val, leaf)
    paths = [
        {data.get_data_info(i)['img_path'] for i in range(len(data))}
        for data in map(DATASETS.build, (train, val))
    ]
    assert not disjoint or not paths[0] & paths[1]
    repeated = dict(type='RepeatDataset', times=2, dataset=train)
    for cfg in (loaders(train=train, val=val), loaders(train=repeated, val=val)):
        record = run_record(cfg, ('train_dataloader',))
        if disjoint:
            check_draws(cfg, tuple(cfg))
            check_recorded_draws(record, cfg['val_dataloader'], 'leave')
        else:
            assert paths[0] & paths[1]
            with pytest.raises(UserError, match='images'):
                check_built(cfg, {k: DATASETS.build(v['dataset']) for k, v in cfg.items()})
            if cfg['val_dataloader']['dataset'] != leaf:
                with pytest.raises(UserError, match='that the training draws'):
                    check_draws(cfg, tuple(cfg))


def test_a_record_has_no_folders():
    """So those that only a folder tells apart are not compared, unless both are split."""
    train, val = folder('a/train'), folder('a/val')
    record = run_record(loaders(train=train), ('train_dataloader',))
    check_recorded_draws(record, dict(dataset=val), 'leave')
    train, val = (folder('a', data_prefix=name) for name in ('train', 'train/'))
    record = run_record(loaders(train=train), ('train_dataloader',))
    with pytest.raises(UserError, match='trained on, from train_dataloader.dataset.*; or leave'):
        check_recorded_draws(record, dict(dataset=val), 'leave')
    check_recorded_draws(record, dict(dataset=val), 'leave', splits_only=True)


def test_a_strangers_record_is_only_compared():
    code = dict(type='os.system', command='true')
    hostile = {f'train_dataloader.dataset.{k}': repr(v) for k, v in code.items()}
    hostile |= {'train_dataloader': '1', 'train_dataloader.dataset.size': '(' * 5000}
    hostile['train_dataloader.dataset.dataset.type'] = "'MNIST'"
    check_recorded_draws(hostile, dict(dataset=folder('a')), 'leave')
    for checkpoint in (None, {}, dict(message_hub=1), dict(message_hub=dict(runtime_info=[]))):
        assert recorded_run(checkpoint) == {}
    for text in ('[', '[' * 100_000, '7', b'\xff', None):
        assert recorded_run(dict(message_hub=dict(runtime_info=dict(run_record=text)))) == {}


def test_lists_of_files_that_overlap(tmp_path):
    root = draw(tmp_path / 'data', count=4)
    files = [f'{name}/{i}.png {label}' for label, name in enumerate(NAMES) for i in range(4)]
    for name, lines in (('train', files[:9]), ('val', files[7:]), ('rest', files[9:])):
        (tmp_path / f'{name}.txt').write_text('\n'.join(lines))

    def listed(name):
        return folder(root, ann_file=str(tmp_path / f'{name}.txt'))

    def check(val):
        cfg = loaders(train=dict(type='RepeatDataset', times=3, dataset=listed('train')), val=val)
        check_built(cfg, {k: DATASETS.build(v['dataset']) for k, v in cfg.items()})

    check(listed('rest'))
    with pytest.raises(UserError, match='val_dataloader: 2 of its 5 images are trained on'):
        check(listed('val'))
    check(listed('train'))  # just the training set: named on purpose, and said


@pytest.mark.parametrize('loader', ['val', 'test'])
def test_mnist_reads_training_files_without_test_mode(digits_root, loader):
    digits = dict(type='MNIST', data_root=str(digits_root), download=False)
    test = dict(digits, split='test')
    cfg = loaders(train=digits, **{loader: test})
    with pytest.raises(UserError, match='reads images that the training draws'):
        check_draws(cfg, tuple(cfg))
    test['test_mode'] = True
    check_draws(loaders(train=digits, **{loader: test}), tuple(cfg))


def test_a_validation_on_the_training_set_is_said(tmp_path, capsys):
    cfg = loaders(train=folder(draw(tmp_path)), val=folder(tmp_path, test_mode=True))
    check_draws(cfg, tuple(cfg))
    assert 'val_dataloader.dataset validates on images that are trained' in capsys.readouterr().out


SMALL = {
    'val_cfg.evolution': dict(population=4, generations=1, parents=2, mutations=1, crossovers=1)
}


@pytest.fixture
def trained(digits_config, shared) -> Path:
    """A checkpoint of the digits, with seed 0 and 1,421 held-out images."""
    if not (shared / 'epoch_1.pth').exists():
        cfg = digits_config('supernet', images=16)
        cfg.train_cfg.max_epochs = 1
        cfg.default_hooks.checkpoint.interval = 1
        cfg.work_dir = str(shared)
        apis.train(cfg)
    return shared / 'epoch_1.pth'


def test_a_search_on_images_of_the_training_is_refused(digits_config, trained):
    def check(**changes):
        cfg = digits_config('search', options=SMALL)
        cfg.model = digits_config('supernet').model
        for path, value in changes.items():
            cfg.merge_from_dict({path.replace('__', '.'): value})
        apis.check_search(cfg, trained)

    check()
    with pytest.raises(UserError) as caught:
        check(val_dataloader__dataset__seed=1)
    message = str(caught.value)
    assert message.startswith('val_dataloader.dataset.dataset: images of its split (part=')
    assert 'size=287, seed=1' in message
    assert "that the checkpoint was trained on (part='train', size=1421, seed=0" in message
    check(val_dataloader__dataset__seed=1, val_cfg__search_on_training_images=True)
    with pytest.raises(UserError, match='search_on_training_images must be True or False'):
        check(val_cfg__search_on_training_images=1)


def test_the_next_stage_keeps_what_was_held_out(digits_config, trained):
    """Else a search would run on what the supernet, though not its experts, was trained on."""
    cfg = digits_config('moLE', options={'train_dataloader.dataset.dataset.seed': 1})
    cfg.val_dataloader.dataset.seed, cfg.load_from = 1, str(trained)
    with pytest.raises(UserError, match='the checkpoint was trained on .*train_cfg.allow_changes'):
        apis.check_training(cfg)
    cfg.train_cfg.allow_changes = True
    apis.check_training(cfg)


def test_classes_of_the_checkpoint(digits_config, trained):
    cfg = digits_config('supernet')
    names = MNIST.METAINFO['classes'][::-1]
    cfg.test_dataloader.dataset.metainfo = dict(classes=names)
    message = "class 0 is '0 - zero' in the checkpoint, but '9 - nine' in test_dataloader"
    with pytest.raises(UserError, match=message):
        apis.evaluate(cfg, trained)
    checkpoint = torch.load(trained, weights_only=False)
    with pytest.raises(UserError, match=message):
        class_names(checkpoint, cfg.test_dataloader, 10)
    search = digits_config('search', options=SMALL)
    search.model = cfg.model
    search.val_dataloader.dataset.dataset.metainfo = dict(classes=names)
    with pytest.raises(UserError, match="'9 - nine' in val_dataloader"):
        apis.check_search(search, trained)


def test_folders_are_compared_at_export(tmp_path):
    loader = dict(dataset=folder(draw(tmp_path)))
    for names, wrong in ((NAMES, None), (('ant', 'bird', 'cow'), "'cow' in the checkpoint")):
        checkpoint = dict(meta=dict(dataset_meta=dict(classes=names)))
        assert trained_classes(checkpoint)['classes'] == names
        if wrong:
            with pytest.raises(UserError, match=f'class 2 is {wrong}'):
                class_names(checkpoint, loader, 3)
        else:
            assert class_names(checkpoint, loader, 3) == list(NAMES)
    with pytest.raises(UserError, match="has 'cat', not among the classes and lacks 'cow'"):
        class_names({}, dict(dataset=named(tmp_path, ('ant', 'bird', 'cow'))), 3)


@pytest.mark.parametrize('kind', ['folder', 'list'])
def test_a_test_set_without_labels(tmp_path, digits_config, trained, capsys, kind):
    root = draw(tmp_path / 'images', ('all',))
    steps = [dict(type='LoadImageFromFile', color_type='grayscale'), dict(type='PackInputs')]
    data = folder(root, with_label=False) | dict(pipeline=steps)
    if kind == 'list':
        images = [dict(img_path='all/0.png'), dict(img_path='all/1.png')]
        content = dict(metainfo={}, data_list=images)
        (tmp_path / 'list.json').write_text(json.dumps(content))
        data = dict(data, type='BaseDataset', ann_file=str(tmp_path / 'list.json'))
        del data['with_label']
    cfg = digits_config('supernet')
    cfg.test_dataloader.dataset = data
    cfg.work_dir = str(tmp_path / 'work')
    cfg.dump(tmp_path / 'config.py')
    assert call_tool('test.py', tmp_path / 'config.py', trained) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('error: test_dataloader: its images have no labels')
    assert 'tools/predict.py' in line


HONEST = {
    'an argument of its own': (dict(type='Own', part='train'), dict(type='Own', part='val')),
    'roots alone': (
        dict(type='ImageNet', data_root='x/train'),
        dict(type='ImageNet', data_root='x/val'),
    ),
    'indices': (dict(type='Own', indices=[0, 1]), dict(type='Own', indices=[2, 3])),
}


@pytest.mark.parametrize('case', HONEST)
def test_honest_data_sets_are_not_refused(case):
    trained, held_out = (dict(dataset=dataset) for dataset in HONEST[case])
    cfg = dict(train_dataloader=trained, val_dataloader=held_out)
    check_draws(cfg, ('train_dataloader', 'val_dataloader'))
    record = run_record(cfg, ('train_dataloader',))
    check_recorded_draws(record, held_out, 'no escape')


def test_classes_in_other_words_are_reported_and_others_refused():
    wnids = dict(classes=['n01440764', 'n01443537'])
    check_same_classes('the checkpoint', dict(classes=['tench', 'goldfish']), 'val', wnids)
    with pytest.raises(UserError, match="class 0 is 'tench' in the checkpoint, but 'goldfish'"):
        check_same_classes(
            'the checkpoint',
            dict(classes=['tench', 'goldfish']),
            'val',
            dict(classes=['goldfish', 'tench']),
        )
