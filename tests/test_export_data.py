"""Parts of the data that exports use: class names and test images."""

import pytest
from mmpretrain.registry import DATASETS
from PIL import Image
from tiny import tiny_model

from tas_lora import UserError
from tas_lora.export.data import class_names, labelled_batches


def test_names_of_classes_come_from_the_data_set():
    loader = dict(dataset=dict(type='tas_lora.HeldOutSplit', dataset=dict(type='MNIST')))
    assert class_names({}, loader, 10)[3] == '3 - three'
    assert class_names({}, loader, 7) is None
    named = dict(dataset=dict(type='CustomDataset', metainfo=dict(classes=('cat', 'dog'))))
    assert class_names({}, named, 2) == ['cat', 'dog']
    for nothing in (None, {}, dict(dataset=dict(type='CustomDataset'))):
        assert class_names({}, nothing, 2) is None


def test_a_folder_of_images_has_its_classes_from_the_training(tmp_path):
    for name in ('fish', 'ant', 'bird'):
        (tmp_path / name).mkdir()
        Image.new('L', (8, 8)).save(tmp_path / name / '0.png')
    folder = dict(type='CustomDataset', data_root=str(tmp_path))
    loader = dict(dataset=folder)
    # As MMEngine's runner writes them.
    split = dict(type='tas_lora.HeldOutSplit', part='train', size=1, seed=0, dataset=folder)
    checkpoint = dict(meta=dict(dataset_meta=DATASETS.build(split).metainfo), state_dict={})
    assert class_names(checkpoint, loader, 3) == ['ant', 'bird', 'fish']
    assert class_names(checkpoint, loader, 4) is None
    assert class_names(checkpoint, dict(dataset=dict(type='MNIST')), 10)[3] == '3 - three'
    for bare in ({}, None, dict(meta=None), dict(meta=dict(dataset_meta=[]))):
        assert class_names(bare, loader, 3) is None


def test_data_that_cannot_be_read(tmp_path):
    (tmp_path / 'ant').mkdir()
    (tmp_path / 'ant' / '0.png').write_text('no image')
    pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
    folder = dict(type='CustomDataset', data_root=str(tmp_path), pipeline=pipeline)
    sampler = dict(type='DefaultSampler', shuffle=False)
    loader = dict(batch_size=1, num_workers=0, sampler=sampler, dataset=folder)
    with pytest.raises(UserError, match='test_dataloader cannot be read: '):
        list(labelled_batches(tiny_model(), loader))
    with pytest.raises(UserError, match='test_dataloader cannot be built: '):
        list(
            labelled_batches(tiny_model(), dict(loader, dataset=dict(folder, data_root='nowhere')))
        )
    with pytest.raises(UserError, match='the config has no test_dataloader'):
        list(labelled_batches(tiny_model(), None))
