"""Parameters and FLOPs against published figures and against built models."""

import numpy as np
import pytest
from tiny import CLASSES, IMAGE, SEARCHED, SPACE, autoformer, tiny_model

from tas_lora import count_flops, count_params
from tas_lora.structures import ViTStyle


@pytest.mark.parametrize(
    ('name', 'params', 'flops'),
    [
        ('t', 5_867_944, 1_344_034_362),
        ('s', 22_891_432, 4_892_144_730),
        ('b', 53_691_688, 11_236_929_660),
    ],
)
def test_searched_subnets_have_the_published_size(name, params, flops):
    assert count_params(SEARCHED[name]) == params
    assert count_flops(SEARCHED[name]) == flops


@pytest.mark.parametrize(
    ('name', 'params', 'flops'),
    [
        ('t', 5_366_056, 1_225_422_264),
        ('s', 13_057_320, 2_860_660_088),
        ('b', 41_687_896, 8_844_104_148),
    ],
)
def test_smallest_subnets_have_the_published_size(name, params, flops):
    smallest = autoformer(name)[0].smallest()
    assert count_params(smallest) == params
    assert count_flops(smallest) == flops


@pytest.mark.parametrize(
    ('name', 'params', 'flops'),
    [
        ('t', 10_517_272, 2_340_356_964),
        ('s', 34_790_440, 7_342_476_988),
        ('b', 76_882_264, 15_971_697_192),
    ],
)
def test_largest_subnets_have_the_published_size(name, params, flops):
    largest = autoformer(name)[0].largest()
    assert count_params(largest) == params
    assert count_flops(largest) == flops


@pytest.mark.parametrize(
    ('name', 'params'), [('t', 11_669_224), ('s', 34_790_440), ('b', 80_160_360)]
)
def test_supernets_have_the_published_size(name, params):
    assert count_params(autoformer(name)[1]) == params


@pytest.mark.parametrize('seed', range(8))
def test_count_is_the_parameters_of_a_model_of_that_size(seed):
    subnet = SPACE.sample(np.random.default_rng(seed))
    model = tiny_model(mole=False, arch=subnet)
    built = sum(parameter.numel() for parameter in model.parameters())
    assert count_params(subnet, **IMAGE, num_classes=CLASSES) == built


def test_model_tells_how_to_count_it():
    built = dict(style=ViTStyle(), feature_parts=1)
    assert tiny_model().image_spec == IMAGE | built | dict(num_classes=CLASSES)
