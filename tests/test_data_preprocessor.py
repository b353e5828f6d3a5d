"""Batches that go to a device in few copies are those of MMPretrain."""

import copy

import pytest
import torch
from mmpretrain.models import ClsDataPreprocessor
from mmpretrain.structures import DataSample

from tas_lora.models.classifiers import SupernetDataPreprocessor

OPTIONS = dict(num_classes=5, mean=[3.0, 5.0, 7.0], std=[2.0, 3.0, 4.0], to_rgb=True)


def batch(labels: list[list[int]], sides: list[int], scores: bool = False) -> dict:
    images = [torch.randint(0, 256, (3, side, 8), dtype=torch.uint8) for side in sides]
    samples = [DataSample().set_gt_label(torch.tensor(label)) for label in labels]
    if scores:
        for sample in samples:
            sample.set_gt_score(torch.rand(5))
    for sample in samples:  # as MMPretrain's data sets of several labels say it
        sample.set_field(5, 'num_classes', field_type='metainfo')
    return dict(inputs=images, data_samples=samples)


@pytest.mark.parametrize(
    ('labels', 'sides', 'scores', 'more'),
    [
        ([[0], [4], [2]], [8, 8, 8], False, {}),
        ([[0], [4], [2]], [8, 8, 8], False, dict(to_onehot=True, pad_size_divisor=16)),
        ([[0, 3], [4], [1, 2, 0]], [8, 8, 8], False, dict(to_onehot=True)),
        ([[0], [4], [2]], [8, 8, 8], False, dict(to_onehot=True, num_classes=None)),
        ([[0], [4], [2]], [8, 8, 8], True, {}),
        ([[0], [4], [2]], [8, 6, 8], False, dict(to_onehot=True)),
    ],
    ids=['labels', 'one-hot', 'several labels', 'classes of samples', 'scores', 'sizes'],
)
def test_a_batch_that_was_sent_is_the_same(labels, sides, scores, more):
    data = batch(labels, sides, scores)
    expected = ClsDataPreprocessor(**OPTIONS | more)(copy.deepcopy(data), training=True)
    ours = SupernetDataPreprocessor(**OPTIONS | more)
    sent = ours._sent(data)
    assert isinstance(sent['inputs'], torch.Tensor) == (len(set(sides)) == 1)
    found = ClsDataPreprocessor.forward(ours, sent, training=True)
    assert_equal(found['inputs'], expected['inputs'])
    for one, other in zip(found['data_samples'], expected['data_samples'], strict=True):
        assert_equal(one.gt_label, other.gt_label)
        assert ('gt_score' in one) == ('gt_score' in other)
        if 'gt_score' in one:
            assert_equal(one.gt_score, other.gt_score)


def assert_equal(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)  # also of one type


def test_images_of_several_types_are_not_stacked():
    data = batch([[0], [4]], [8, 8])
    data['inputs'][1] = data['inputs'][1].float() + 0.5
    expected = ClsDataPreprocessor(**OPTIONS)(copy.deepcopy(data))
    ours = SupernetDataPreprocessor(**OPTIONS)
    sent = ours._sent(data)
    assert sent['inputs'] is data['inputs']
    assert_equal(ClsDataPreprocessor.forward(ours, sent)['inputs'], expected['inputs'])
