"""The split between training and search, on folders laid out like ImageNet's."""

import json
import random
import zlib
from pathlib import Path

import numpy as np
import pytest
from mmengine.dataset import BaseDataset
from mmpretrain.datasets import KFoldDataset
from PIL import Image

from tas_lora import UserError
from tas_lora.datasets import held_out_split
from tas_lora.datasets.held_out import official_subset, random_split


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """Three classes of 110 images."""
    root = tmp_path_factory.mktemp('imagenet')
    image = Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8))
    for name in ('n2', 'n1', 'n3'):
        (root / name).mkdir()
        for i in range(110):
            image.save(root / name / f'{i}.JPEG')
    return root


def paths(folder: Path, **arguments) -> set[str]:
    config = dict(type='CustomDataset', data_root=str(folder), pipeline=[])
    dataset = held_out_split(config, **arguments)
    return {dataset.get_data_info(i)['img_path'] for i in range(len(dataset))}


@pytest.mark.parametrize('images', [None, 'autoformer'])
def test_parts_are_disjoint_and_complete(folder, images):
    heldout, train = (
        paths(folder, part=part, size=30, images=images) for part in ('heldout', 'train')
    )
    assert len(heldout) == (30 if images is None else 300)
    assert not heldout & train
    assert heldout | train == {str(path) for path in folder.glob('*/*')}


def test_the_draw_follows_the_seed(folder):
    first, again, other = (paths(folder, part='heldout', size=30, seed=s) for s in (0, 0, 1))
    assert first == again != other


def test_official_list_as_the_official_script_draws_it(folder):
    """The script, in its own words: seed once, sorted classes, a sample of each sorted list."""
    random.seed(0)
    expected = set()
    for name in sorted(path.name for path in folder.iterdir()):
        files = sorted(path.name for path in (folder / name).iterdir())
        expected |= {str(folder / name / file) for file in random.sample(files, 100)}
    assert paths(folder, part='heldout', images='autoformer') == expected


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(part='test'), "part must be 'train' or 'heldout', got 'test'"),
        (dict(part='train', images='all'), "images must be None or 'autoformer', got 'all'"),
        (dict(part='train'), 'size is 10000, but the training set has 330 images'),
        (dict(part='train', size=-1), 'size must be a positive integer, got -1'),
    ],
)
def test_splits_that_make_no_sense(folder, arguments, message):
    with pytest.raises(UserError, match=message):
        paths(folder, **arguments)


def test_a_class_too_small_for_the_official_list():
    with pytest.raises(UserError, match='class a has 2 images, 100 are to be held out'):
        official_subset([Path('a/1.JPEG'), Path('a/2.JPEG')])


def test_size_of_imagenet():
    heldout, train = random_split(1_281_167, 10_000, seed=0)
    assert len(heldout) == 10_000
    assert sorted(heldout + train) == list(range(1_281_167))
    recorded = 836363872  # by 0.1
    assert zlib.crc32(np.array(heldout + train, '<i8').tobytes()) == recorded


def test_the_draw_is_that_of_a_fold(folder):
    config = dict(type='CustomDataset', data_root=str(folder), pipeline=[])
    for part, test_mode in (('heldout', True), ('train', False)):
        fold = KFoldDataset(config, num_splits=5, seed=3, test_mode=test_mode)
        ours = held_out_split(config, part=part, size=66, seed=3)
        assert [fold.get_data_info(i)['img_path'] for i in range(len(fold))] == [
            ours.get_data_info(i)['img_path'] for i in range(len(ours))
        ]


def test_no_copied_dataset_is_remembered(folder):
    """MMEngine notes copies by address, in a default argument that all calls share.

    Once a dataset is freed, another object may get its address, and a copy of that object would be
    the old dataset.
    """
    (notes,) = BaseDataset._copy_without_annotation.__defaults__
    if notes is None:
        pytest.skip('this MMEngine, the fork, remembers none')
    notes.clear()  # of other tests
    paths(folder, part='train', size=30)
    assert not notes


def test_the_draw_of_earlier_versions():
    """Recorded from 0.1: the split of a running project must not change."""
    expected = [3, 8, 12, 13, 14, 16], [10, 15, 1, 6, 0, 7, 4, 18, 5, 19, 17, 2, 9, 11]
    assert random_split(20, 6, seed=7) == expected


LABELS = [0] * 60 + [1] * 30 + [2] * 9 + [3] * 2 + [4]


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('size', [5, 20, 51, 100])
def test_stratified(size, seed):
    heldout, train = random_split(102, size, seed, LABELS)
    assert sorted(heldout + train) == list(range(102))
    assert len(heldout) == size
    counts = np.bincount([LABELS[i] for i in heldout], minlength=5)
    shares = np.bincount(LABELS) * size / 102
    assert abs(counts - shares).max() < 2
    assert (counts[:4] > 0).all()
    if size < 100:  # of 102, in five classes
        assert (counts < [60, 30, 9, 2, 1]).all()
    smaller, _ = random_split(102, size - 1, seed, LABELS)
    assert set(smaller) < set(heldout)
    other, _ = random_split(102, size, seed + 1, LABELS)
    assert heldout != other


@pytest.mark.parametrize(
    ('labels', 'size', 'part', 'expected'),
    [
        # The seed's order begins with 3, 8, 12, 13, 14, 16.
        ([0, 1] * 10, 1, 'heldout', '1 of 2 classes have no held-out image (a); set stratify'),
        ([0] * 3 + [1] + [0] * 16, 1, 'train', '1 of 2 classes have no training image (b); set'),
        ([[0]] * 3 + [[0, 1]] + [[0]] * 16, 1, 'train', '1 of 2 classes have no training image'),
        ([0, 1] * 10, 6, 'heldout', None),
        ([0] * 3 + [1] + [0] * 16, 1, 'heldout', '1 of 2 classes have no held-out image (a)'),
        ([None] * 20, 1, 'heldout', None),
    ],
)
def test_classes_that_lose_all_images_are_counted(capsys, labels, size, part, expected, tmp_path):
    entries = [
        dict(img_path=f'{i}.png') | ({} if label is None else dict(gt_label=label))
        for i, label in enumerate(labels)
    ]
    content = dict(metainfo=dict(classes=['a', 'b']), data_list=entries)
    (tmp_path / 'list.json').write_text(json.dumps(content))
    config = dict(type='mmpretrain.BaseDataset', ann_file=str(tmp_path / 'list.json'))
    held_out_split(config, part=part, size=size, seed=7)
    log = capsys.readouterr().out
    assert ('HeldOutSplit: ' + expected in log) if expected else 'HeldOutSplit' not in log


def test_stratify_on_request(folder, capsys):
    for part, count in (('heldout', 1), ('train', 109)):
        config = dict(type='CustomDataset', data_root=str(folder), pipeline=[])
        data = held_out_split(config, part=part, size=3, stratify=True)
        assert np.bincount(data.get_gt_labels()).tolist() == [count] * 3
    assert 'HeldOutSplit' not in capsys.readouterr().out
    for arguments, message in (
        (dict(stratify=1), 'stratify must be True or False'),
        (dict(stratify=True, images='autoformer'), 'stratify has no effect'),
    ):
        with pytest.raises(UserError, match=message):
            paths(folder, part='train', **arguments)
    with pytest.raises(UserError, match='stratify needs one label for each image'):
        random_split(3, 1, 0, [[0], [0, 1], [1]])
