"""Tables, chosen subnets and multiply-adds of the comparison."""

import numpy as np
import pytest
import timm
import torch
from from_pretrained.figures import draw_accuracy, draw_kept
from from_pretrained.records import Records
from from_pretrained.subnets import SHARES, subnets_of
from from_pretrained.tables import (
    differences,
    others_table,
    sign_flip_p,
    spread,
    targets_table,
    ways_table,
)

from tas_lora import SearchSpace, Subnet
from tas_lora.structures import ViTStyle

SPEC = dict(
    img_size=98,
    patch_size=14,
    num_classes=54,
    head_dim=64,
    max_relative_position=None,
    style=ViTStyle(norm_eps=1e-6, layer_scale=1.0, qkv_bias_by_part=True),
)
SPACE = SearchSpace(
    embed_dim=[384], depth=list(range(6, 13)), num_heads=[3, 4, 5, 6], mlp_ratio=[1, 2, 3, 4]
)


def way(name, seed, half, quarter, original, found=None):
    """A record as ways.py writes it; only after some ways a search has found subnets."""
    top1 = dict(half_1=half - 1, half_2=half + 1, quarter_1=quarter, original=original)
    if found:
        top1 |= dict(half_found=found, quarter_found=found - 20)
    return record(name, seed, top1)


def record(name, seed, top1):
    third = {key: value / 2 for key, value in top1.items()}
    return dict(
        way=name,
        seed=seed,
        iters=300,
        cpu_seconds=120,
        trained=0 if name == 'ordered' else 10**6,
        macs=dict.fromkeys(top1, 1e9),
        top1=dict(test=top1, third=third),
    )


WAYS = [
    way('ordered', 0, 10, 5, 80),
    *(way('one LoRA', seed, 50 + seed, 30, 79) for seed in range(3)),
    *(way('experts + shared', seed, 52 + seed, 31, 80) for seed in range(3)),
    *(way('all weights', seed, 60 + seed, 40, 78, 62 if not seed else None) for seed in range(3)),
    record('all weights, polished', 0, dict(half_found=70, quarter_found=50)),
]
OTHERS = [
    dict(
        way=name,
        size=size,
        seed=seed,
        iters=300,
        cpu_seconds=60,
        macs=500e6,
        untrained=2.0,
        top1=dict(test=value + seed, third=value),
    )
    for name, value in (('scratch', 20.0), ('isomorphic', 57.0))
    for size in SHARES
    for seed in range(2)
]


def multiply_adds(subnet: Subnet) -> int:
    """Of every matrix product, written out."""
    tokens, width = 7 * 7 + 1, subnet.embed_dim
    total = 49 * width * 3 * 14 * 14 + width * 54
    for heads, ratio in zip(subnet.num_heads, subnet.mlp_ratio, strict=True):
        inner, hidden = heads * 64, int(ratio * width)
        total += tokens * (3 * inner * width + inner * width + 2 * width * hidden)
        total += 2 * tokens * tokens * inner
    return total


def test_subnets_are_just_below_their_shares_and_always_the_same():
    found = subnets_of(SPACE, SPEC)
    full = multiply_adds(SPACE.largest())
    for name, subnet in found.items():
        share = SHARES.get(name[:-2], 1.0)
        assert share - 0.02 < multiply_adds(subnet) / full <= share
    assert len(set(found.values())) == len(found) == 5
    assert found == subnets_of(SPACE, SPEC)


def test_pruned_networks_count_what_the_space_counts():
    pytest.importorskip('torch_pruning')
    from from_pretrained.pruning import macs_of, prune

    torch.manual_seed(0)
    model = timm.create_model('vit_small_patch14_dinov2', img_size=28, num_classes=54)
    model.set_input_size(img_size=98)
    assert macs_of(model, 98) == multiply_adds(SPACE.largest())
    images, labels = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8), torch.arange(4)
    pruned = prune(model, 0.5, [(images, labels)], 98)
    assert 0.45 < macs_of(pruned, 98) / macs_of(model, 98) <= 0.5
    assert pruned(torch.zeros(1, 3, 98, 98)).shape == (1, 54)
    assert macs_of(model, 98) == multiply_adds(SPACE.largest())  # it was a copy


def test_tables_have_means_and_deviations_over_seeds():
    table = ways_table(WAYS, 'test')
    row = '| all weights | 300 | 3 | 61.0 +-1.0 | 40.0 +-0.0 | 62.0 | 42.0 | 78.0 +-0.0 |'
    assert f'{row} 1.0M | 2.0 |' in table
    assert '| ordered | 0 | 1 | 10.0 | 5.0 |  |  | 80.0 | none | 2.0 |' in table
    assert '| all weights, polished | 300 | 1 |  |  | 70.0 | 50.0 |  | 1.0M | 2.0 |' in table
    assert '| 30.5 +-0.5 |' in ways_table(WAYS, 'third')
    row = '| scratch | half | 300 | 2 | 500M | 2.0 +-0.0 | 20.5 +-0.7 | 20.0'
    assert row in others_table(OTHERS)
    assert spread([]) == ''


def test_differences_are_paired():
    table = differences(WAYS)
    assert '| experts + shared | one LoRA | half | 6 | +2.0 | 0.031 |' in table  # 2 / 2^6
    assert '| experts + shared | all weights | original | 3 | +2.0 | 0.250 |' in table
    assert 'all weights, labels' not in table


def test_sign_flips_are_exact_for_a_few_pairs():
    assert sign_flip_p([1.0, 2.0, 3.0]) == pytest.approx(2 / 8)
    assert sign_flip_p([1.0, -1.0]) == pytest.approx(1)
    assert np.isnan(sign_flip_p([1.0]))


def test_found_subnets_are_held_against_the_means_of_others():
    table = targets_table(WAYS, OTHERS)
    assert '| half | all weights | 1 | 78% | +41.5 | +4.5 |' in table  # 62 of 80; 20.5; 57.5
    assert '| quarter | all weights, polished | 1 | 62% | +29.5 | -7.5 |' in table
    assert 'experts' not in table


def test_records_are_kept_and_known_again(tmp_path):
    path = tmp_path / 'new' / 'records.json'
    Records(path).add(dict(way='a', seed=0, top1=1.5))
    records = Records(path)
    assert records.has(dict(way='a', seed=0))
    assert not records.has(dict(way='a', seed=1))
    records.add(dict(way='a', seed=1))
    assert [record['seed'] for record in Records(path).all] == [0, 1]


def test_the_figure_of_winners_shows_blocks_of_the_original():
    kept = dict(embed_dim=384, num_heads=[3, 5], mlp_ratio=[1.0, 2.0])
    records = [way('all weights', 0, 60, 40, 78, 62) | dict(subnets=dict(half_found=kept))]
    heads, ratios = draw_kept(records, order=[2, 0, 1]).axes  # blocks 2 and 0 are the best
    assert [bar.get_height() for bar in heads.patches] == [3, 0, 5]
    assert [bar.get_height() for bar in ratios.patches] == [1, 0, 2]


def test_the_figure_of_accuracy_has_every_way_and_rival():
    (axes,) = draw_accuracy(WAYS, OTHERS).axes
    shown = axes.get_legend_handles_labels()[1]
    assert {'all weights', 'all weights, found', 'one LoRA', 'Torch-Pruning'} <= set(shown)
    assert shown.count('Torch-Pruning') == 1
