"""Parameters and FLOPs against published figures and against built models."""

import numpy as np
import pytest
import timm
import torch
from tiny import CLASSES, IMAGE, SEARCHED, SPACE, autoformer, tiny_model
from torch.utils.flop_counter import FlopCounterMode

from tas_lora import Subnet, count_flops, count_params
from tas_lora.models.plain_vit import PlainViT
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


DINO = ViTStyle(num_prefix_tokens=5, prefix_positions=False, layer_scale=1.0)


@pytest.mark.parametrize(
    ('name', 'sizes', 'spec'),
    [
        ('vit_tiny_patch16_224', (192, 3), {}),
        ('deit_small_patch16_224', (384, 6), dict(img_size=384)),
        ('vit_small_patch14_reg4_dinov2', (384, 6), dict(img_size=98, patch_size=14, style=DINO)),
        (
            'vit_base_patch32_clip_224',
            (768, 12),
            dict(patch_size=32, num_classes=7, style=ViTStyle(pre_norm=True)),
        ),
        (
            'vit_base_patch16_siglip_gap_224',
            (768, 12),
            dict(num_classes=0, style=ViTStyle(num_prefix_tokens=0)),
        ),
    ],
)
def test_without_relative_positions_counts_are_those_of_timm(name, sizes, spec):
    """Products by torch's counter; parameters less LayerScale, and with the bias CLIP lacks."""
    width, heads = sizes
    subnet = Subnet(width, [heads] * 12, [4.0] * 12)
    side, classes = spec.get('img_size', 224), spec.get('num_classes', 1000)
    with torch.device('meta'):
        net = timm.create_model(name, img_size=side, num_classes=classes)
        images = torch.empty(1, 3, side, side)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(images)
    count = sum(p.numel() for key, p in net.named_parameters() if 'gamma' not in key)
    count += 0 if net.patch_embed.proj.bias is not None else width
    assert count_flops(subnet, max_relative_position=None, **spec) * 2 == counter.get_total_flops()
    assert count_params(subnet, max_relative_position=None, **spec) == count


@pytest.mark.parametrize('pooling', ['cls_token', 'cls_avg'])
@pytest.mark.parametrize('final_norm', ['tokens', 'none'])
@pytest.mark.parametrize('prefix_positions', [True, False])
@pytest.mark.parametrize('reach', [None, 2])
def test_count_is_the_parameters_of_the_exported_network(
    pooling, final_norm, prefix_positions, reach
):
    own = dict(
        num_prefix_tokens=3 if reach is None else 1,
        prefix_positions=prefix_positions,
        final_norm=final_norm,
    )
    own |= dict(pre_norm=prefix_positions)
    spec = dict(IMAGE, num_classes=CLASSES, max_relative_position=reach)
    net = PlainViT(16, [1, 2], [32, 16], **spec, pooling=pooling, **own)
    parts = 2 if pooling == 'cls_avg' else 1
    subnet = Subnet(16, [1, 2], [2.0, 1.0])
    built = sum(parameter.numel() for parameter in net.parameters())
    assert count_params(subnet, **spec, style=ViTStyle(**own), feature_parts=parts) == built
