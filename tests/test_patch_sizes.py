"""Patch size as a search dimension: slices are exact, and everything else accounts for it."""

import re
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import CLASSES, IMAGE, SPACE, SPACE_DICT, every, images, randomize, repeatable, spaces

from tas_lora import SearchSpace, Subnet, count_flops, count_params, load_supernet
from tas_lora.costs.deployed import Deployed
from tas_lora.errors import UserError
from tas_lora.models.backbones import ElasticViT
from tas_lora.models.export import export_subnet
from tas_lora.models.layers import finest_positions
from tas_lora.models.plain_vit import load_plain_vit
from tas_lora.report.page import in_words
from tas_lora.search.surrogate import encode

PATCHES = [2, 4, 8]
PATCHY = SearchSpace(**SPACE_DICT, patch_size=PATCHES)
BACKBONE = IMAGE | dict(patch_size=PATCHES)
ATTRIBUTES = ['num_heads', 'mlp_ratio', 'embed_dim', 'patch_size']


def supernet(**router):
    """A supernet of three patch sizes, with experts if there is something to route by."""
    torch.manual_seed(0)
    backbone = dict(
        type='tas_lora.ElasticViT', arch=SPACE.largest().to_dict(), init_std=0.2, **BACKBONE
    )
    parts = {}
    if router:
        backbone['mole'] = dict(num_experts=24, rank=2)
        parts['router'] = dict(type='tas_lora.LSTMRouterHead', space=PATCHY, **router)
    head = dict(type='tas_lora.ElasticClsHead', num_classes=CLASSES)
    model = dict(type='tas_lora.SupernetClassifier', backbone=backbone, head=head, **parts)
    return randomize(load_supernet(dict(model=model)), 0.2)


def patch_around(pixel: int, size: int) -> int:
    return next(i for i in range(1000) if i * size <= pixel < (i + 1) * size)


# Slices


@pytest.mark.parametrize('sizes', [(2, 4, 8), (1, 2, 3, 6), (2, 3), (4, 6), (14, 16, 28)])
def test_a_patch_has_the_position_of_the_finest_one_around_its_centre(sizes):
    side = np.lcm.reduce(sizes)
    finest = side // sizes[0]
    for size in sizes:
        grid = side // size
        centres = [(i * size + (i + 1) * size) // 2 for i in range(grid)]
        lines = [patch_around(centre, sizes[0]) for centre in centres]
        expected = [0] + [1 + row * finest + column for row, column in product(lines, lines)]
        assert finest_positions(grid, finest).tolist() == expected


@pytest.mark.parametrize('size', PATCHES)
@pytest.mark.parametrize('out_type', ['avg_featmap', 'cls_token', 'featmap'])
def test_a_subnet_is_a_network_of_its_patches_with_sliced_weights(size, out_type):
    """The other network has one patch size, and never heard of several."""
    torch.manual_seed(0)
    several = randomize(ElasticViT(SPACE.largest(), **BACKBONE, out_type=out_type), 0.2)
    one = ElasticViT(SPACE.largest(), **IMAGE | dict(patch_size=size), out_type=out_type)
    state = {name: value.clone() for name, value in several.state_dict().items()}
    centres = [i * size + size // 2 for i in range(8 // size)]
    fine = [0] + [1 + 4 * (y // 2) + x // 2 for y, x in product(centres, centres)]
    state['patch_embed.weight'] = state['patch_embed.weight'][:, :, :size, :size]
    state['pos_embed'] = state['pos_embed'][:, fine]
    one.load_state_dict(state)
    for subnet in every(SPACE)[::7]:
        found = several(images(), replace(subnet, patch_size=size))[-1]
        torch.testing.assert_close(found, one(images(), subnet)[-1], rtol=0, atol=0)


@pytest.mark.parametrize('size', PATCHES)
def test_no_weight_outside_the_slice_matters_or_learns(size):
    model = supernet()
    model.set_subnet(replace(SPACE.smallest(), patch_size=size))
    logits = model(images())
    logits.sum().backward()
    grid = 8 // size
    gradient = model.backbone.patch_embed.weight.grad
    assert gradient[:16, :, :size, :size].abs().min() > 0
    assert gradient.count_nonzero() == 16 * size**2
    learned = model.backbone.pos_embed.grad[0].abs().sum(-1) > 0
    assert int(learned.sum()) == grid**2 + 1
    with torch.no_grad():
        model.backbone.patch_embed.weight[:, :, size:] = torch.nan
        model.backbone.patch_embed.weight[:, :, :, size:] = torch.nan
        model.backbone.pos_embed[:, ~learned] = torch.nan
        assert torch.equal(model(images()), logits)


def test_without_a_word_the_patches_are_the_smallest_ones():
    model = supernet()
    model.set_subnet(SPACE.smallest())
    first = model(images())
    model.set_subnet(replace(SPACE.smallest(), patch_size=2))
    assert torch.equal(model(images()), first)


def test_feature_maps_have_a_point_a_patch():
    vit = ElasticViT(SPACE.largest(), **BACKBONE, out_type='featmap', out_indices=(0, 2))
    shapes = [m.shape[1:] for m in vit(images(), replace(SPACE.largest(), patch_size=4))]
    assert shapes == [(24, 2, 2)] * 2


# What it costs, and what is exported


@pytest.mark.parametrize('size', PATCHES)
@pytest.mark.parametrize('count', [count_params, count_flops])
def test_costs_are_those_of_a_network_of_such_patches(size, count):
    spec = IMAGE | dict(num_classes=CLASSES)
    for subnet in every(SPACE)[::11]:
        own = count(replace(subnet, patch_size=size), **spec)
        assert own == count(subnet, **spec | dict(patch_size=size))


@pytest.mark.parametrize('size', PATCHES)
@pytest.mark.parametrize('router', [{}, dict(attributes=ATTRIBUTES)])
def test_the_exported_network_agrees_and_is_as_large_as_counted(size, router, tmp_path):
    model = supernet(**router)
    subnet = replace(SPACE.sample(np.random.default_rng(3)), patch_size=size)
    export_subnet(model, subnet, tmp_path)
    net, description = load_plain_vit(tmp_path)
    assert description['network']['patch_size'] == size
    assert Subnet.from_dict(description['subnet']) == subnet
    parameters = sum(p.numel() for p in net.parameters())
    assert parameters == description['params']
    model.set_subnet(subnet)
    with torch.no_grad():
        torch.testing.assert_close(net(images()), model(images()), rtol=1e-5, atol=1e-5)


def test_memory_is_measured_with_its_patches():
    spec = IMAGE | dict(num_classes=CLASSES)
    small, large = (replace(SPACE.largest(), patch_size=size) for size in (2, 8))
    measure = Deployed(spec, 'avg_featmap', batch_size=16)
    alone = Deployed(spec | dict(patch_size=8), 'avg_featmap', batch_size=16)
    assert measure.memory(large) == alone.memory(SPACE.largest())
    assert measure.memory(large)['memory'] < measure.memory(small)['memory']


# Experts


def test_a_router_that_reads_the_patches_has_a_group_for_each():
    model = supernet(attributes=ATTRIBUTES)
    groups = {
        size: set(model.router.groups(replace(SPACE.smallest(), patch_size=size)))
        for size in PATCHES
    }
    assert len(model.router.groups) == 2 * 2 * 2 * 3
    assert all(len(found) == 1 for found in groups.values())
    assert len(set.union(*groups.values())) == 3


def test_patches_change_the_experts_only_for_a_router_that_reads_them():
    sizes = [replace(SPACE.smallest(), patch_size=size) for size in PATCHES]
    reads = supernet(attributes=ATTRIBUTES).router
    gates = [reads(subnet) for subnet in sizes]
    assert not torch.allclose(gates[0], gates[1])
    ignores = supernet(attributes=ATTRIBUTES[:3], init='random', num_experts=24).router
    assert torch.equal(ignores(sizes[0]), ignores(sizes[2]))


# The space


@st.composite
def patchy_spaces(draw):
    sizes = st.lists(st.sampled_from([2, 4, 7, 8]), min_size=1, max_size=3, unique=True)
    return replace(draw(spaces(depths=(1, 2))), patch_size=tuple(draw(sizes)))


@given(patchy_spaces(), st.integers(0, 10**6))
@repeatable
def test_draws_mutants_and_children_stay_in_the_space(space, seed):
    rng = np.random.default_rng(seed)
    a = space.sample(rng)
    b = replace(space, depth=(a.depth,)).sample(rng)
    assert {a, b, space.smallest(), space.largest()} <= set(every_patch(space))
    assert all(s in space for s in every_patch(space)[::5])
    assert space.size == len(set(every_patch(space)))
    assert space.mutate(a, rng, 0.5, 0.5) in space
    assert space.mutate(a, rng, 0, 0) == a
    child = space.crossover(a, b, rng)
    assert child.patch_size in (a.patch_size, b.patch_size)
    assert child in space


def every_patch(space) -> list[Subnet]:
    return [replace(s, patch_size=p) for s in every(space) for p in space.patch_size]


def test_patches_are_equally_likely_and_redrawn_as_often_as_the_width():
    rng = np.random.default_rng(0)
    drawn = [PATCHY.sample(rng).patch_size for _ in range(9000)]
    assert all(abs(drawn.count(size) - 3000) < 150 for size in PATCHES)
    start = PATCHY.smallest()
    changed = sum(PATCHY.mutate(start, rng, 0, 0.4).patch_size != 8 for _ in range(9000))
    assert abs(changed - 0.4 * 2 / 3 * 9000) < 140


def test_a_space_without_patches_draws_what_it_drew_before_there_were_any():
    """Recorded of version 0.1.0 before patch sizes: searches and trainings keep their seeds."""
    rng = np.random.default_rng(7)
    first, second = SPACE.sample(rng), SPACE.sample(rng)
    mutant, child = SPACE.mutate(first, rng, 0.5, 0.5), SPACE.crossover(first, first, rng)
    assert first == child == Subnet(16, [2] * 3, [2.0] * 3)
    assert second == Subnet(16, [2, 2], [1.0, 1.0])
    assert mutant == Subnet(16, [2] * 3, [2.0, 2.0, 1.0])
    assert rng.integers(10**6) == 466230
    assert repr(second) == 'Subnet(embed_dim=16, num_heads=(2, 2), mlp_ratio=(1.0, 1.0))'


def test_the_most_of_everything_has_the_smallest_patches():
    assert (PATCHY.largest().patch_size, PATCHY.smallest().patch_size) == (2, 8)
    spec = IMAGE | dict(num_classes=CLASSES)
    costs = [count_flops(subnet, **spec) for subnet in every_patch(PATCHY)]
    ends = [count_flops(subnet, **spec) for subnet in (PATCHY.smallest(), PATCHY.largest())]
    assert ends == [min(costs), max(costs)]


def test_written_down_only_where_there_is_one():
    subnet = PATCHY.largest()
    assert Subnet.from_dict(subnet.to_dict()) == subnet
    assert subnet.to_dict()['patch_size'] == 2
    assert 'patch_size' not in SPACE.largest().to_dict()
    assert repr(subnet).endswith(', patch_size=2)')
    assert in_words(subnet).endswith('MLP ratio 2, patches of 2')
    vectors = [encode(s, space) for s, space in ((subnet, PATCHY), (SPACE.largest(), SPACE))]
    assert vectors[0].tolist() == [*vectors[1], 2]


# Mistakes


def test_patches_that_the_supernet_does_not_have_are_refused():
    message = 'subnet does not fit: patch_size is 1, the supernet has [2, 4, 8]; choose one of them'
    with pytest.raises(UserError, match=re.escape(message)):
        supernet().set_subnet(replace(SPACE.largest(), patch_size=1))
    space = replace(PATCHY, patch_size=(2, 4, 5))
    with pytest.raises(UserError, match='the largest subnet of the space does not fit: patch_size'):
        supernet().backbone.check_space(space, 'the space')


@pytest.mark.parametrize('sizes', [[2, 3], (3,)])
def test_patches_that_do_not_divide_the_image_are_refused(sizes):
    with pytest.raises(UserError, match='img_size 8 is no multiple of patch_size 3'):
        ElasticViT(SPACE.largest(), **IMAGE | dict(patch_size=sizes))


@pytest.mark.parametrize('sizes', [[], 'abc', [2, 0], [2, 4.0], True])
def test_patches_that_are_no_sizes_are_refused(sizes):
    with pytest.raises(UserError, match=r'^ElasticViT\.patch_size'):
        ElasticViT(SPACE.largest(), **IMAGE | dict(patch_size=sizes))


def test_a_router_cannot_read_patches_that_no_subnet_has():
    message = "model.router.attributes has 'patch_size', which the space leaves open; add choices"
    router = dict(type='tas_lora.LSTMRouterHead', space=SPACE_DICT, attributes=ATTRIBUTES)
    backbone = dict(type='tas_lora.ElasticViT', arch=SPACE.largest().to_dict(), **IMAGE)
    backbone['mole'] = dict(num_experts=24, rank=2)
    model = dict(type='tas_lora.SupernetClassifier', backbone=backbone, router=router)
    with pytest.raises(UserError, match=re.escape(message)):
        load_supernet(dict(model=model))


def test_a_subnet_without_patches_belongs_to_no_group_of_a_router_that_reads_them():
    with pytest.raises(UserError, match=r'patch_size None\) belongs to no group of experts'):
        supernet(attributes=ATTRIBUTES).set_subnet(SPACE.largest())
