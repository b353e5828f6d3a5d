"""Feature maps of blocks, frozen stages, and weights for a standalone backbone."""

import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from mmpretrain.registry import MODELS
from test_export import trained_like
from tiny import IMAGE, SPACE, images, randomize, repeatable, spaces, tiny_model
from torch import nn

from tas_lora import Subnet, UserError, export_subnet
from tas_lora.models import ElasticViT

ARCH = SPACE.largest()  # three blocks, 24 wide, on 4 x 4 patches
SHALLOW = Subnet(16, (1, 2), (2.0, 1.0))


def vit(arch: Subnet | str = ARCH, **options) -> ElasticViT:
    """A backbone of feature maps, the same weights at each call."""
    torch.manual_seed(0)
    return randomize(ElasticViT(arch, **IMAGE | dict(out_type='featmap') | options), std=0.2)


def without_branches(blocks: nn.ModuleList) -> None:
    """Zero what blocks add to their input."""
    for block in blocks:
        for layer in (block.attn.proj, block.fc2):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)


@repeatable
@given(st.data())
def test_every_subnet_gives_a_map_for_each_index(data):
    space = data.draw(spaces())
    arch = space.largest()
    blocks = st.integers(0, arch.depth - 1)
    indices = sorted(data.draw(st.sets(blocks, min_size=1)))
    model = ElasticViT(arch, **IMAGE, out_type='featmap', out_indices=indices)
    for subnet in (space.smallest(), arch):
        maps = model(images(), subnet)
        assert [tuple(m.shape) for m in maps] == [(2, subnet.embed_dim, 4, 4)] * len(indices)


def test_a_map_lies_as_its_image_does():
    """Without branches a map is the convolution of patches and its position."""
    model = vit(out_indices=(0, 1))
    without_branches(model.blocks)
    for width in (16, 24):
        expected = F.conv2d(
            images(), model.patch_embed.weight[:width], model.patch_embed.bias[:width], stride=2
        )
        position = model.pos_embed[0, 1:, :width].T.reshape(width, 4, 4)
        for found in model(images(), Subnet(width, (1, 1), (1.0, 1.0))):
            torch.testing.assert_close(found, expected + position)


def test_maps_are_the_tokens_of_their_blocks_and_the_last_is_normalised():
    model, tokens = vit(out_indices=(0, 2)), []
    for block in model.blocks:
        block.register_forward_hook(lambda _, inputs, output: tokens.append(output))
    first, last = model(images())
    normed = F.layer_norm(tokens[2], (24,), model.norm.weight, model.norm.bias)
    for row in range(4):
        for column in range(4):
            place = 1 + 4 * row + column
            assert torch.equal(first[:, :, row, column], tokens[0][:, place])
            torch.testing.assert_close(last[:, :, row, column], normed[:, place])


def test_a_block_beyond_the_depth_passes_on_what_it_is_given():
    model = vit(out_indices=(0, 1, 2))
    shallow = model(images(), SHALLOW)
    without_branches(model.blocks[2:])
    whole = model(images(), Subnet(16, (1, 2, 2), (2.0, 1.0, 2.0)))
    for found, expected in zip(shallow, whole, strict=True):
        torch.testing.assert_close(found, expected)
    assert (whole[1] - whole[2]).abs().max() > 0.1  # the norm follows the last block


@pytest.mark.parametrize(('indices', 'expected'), [((-3, -1), (0, 2)), (-2, (1,)), ([1], (1,))])
def test_negative_indices_count_from_the_supernet_s_last_block(indices, expected):
    for found, wanted in zip(
        vit(out_indices=indices)(images()), vit(out_indices=expected)(images()), strict=True
    ):
        assert torch.equal(found, wanted)


def test_pooled_outputs_are_those_of_the_maps():
    maps = vit(out_indices=(1, 2))(images())
    pooled = vit(out_indices=(1, 2), out_type='avg_featmap')(images())
    for feature, whole in zip(pooled, maps, strict=True):
        torch.testing.assert_close(feature, whole.mean(dim=(2, 3)))
    alone = vit(out_type='avg_featmap')(images())
    assert len(alone) == 1  # by default, as a head expects
    assert torch.equal(alone[0], pooled[1])


@pytest.mark.parametrize(
    ('subnet', 'indices', 'reached'),
    [(ARCH, (0,), {0}), (ARCH, (0, 1), {0, 1}), (ARCH, (2,), {0, 1, 2}), (SHALLOW, (2,), {0, 1})],
)
def test_gradients_reach_the_blocks_before_a_map(subnet, indices, reached):
    model = vit(out_indices=indices)
    sum(m.square().sum() for m in model(images(), subnet)).backward()
    touched = {
        name.split('.')[1]
        for name, parameter in model.blocks.named_parameters(prefix='blocks')
        if parameter.grad is not None and parameter.grad.any()
    }
    assert touched == set(map(str, reached))
    assert (model.norm.weight.grad is not None) == (2 in indices)
    assert model.patch_embed.weight.grad.any()


class Pyramid(nn.Module):
    """What detectors add after a plain ViT: a map of each block at its own resolution."""

    def __init__(self, width: int, out: int = 8):
        super().__init__()
        self.levels = nn.ModuleList(
            [nn.ConvTranspose2d(width, out, 2, 2), nn.Conv2d(width, out, 1), nn.MaxPool2d(2)]
        )
        self.last = nn.Conv2d(width, out, 1)

    def forward(self, maps: tuple) -> list:
        high, middle, low = (level(m) for level, m in zip(self.levels, maps, strict=True))
        return [high, middle, self.last(low)]


def test_a_pyramid_of_three_blocks_is_trained():
    model = vit(out_indices=(0, 1, 2), frozen_stages=1)
    neck = Pyramid(24)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = [p for p in [*model.parameters(), *neck.parameters()] if p.requires_grad]
    optimizer, losses = torch.optim.Adam(parameters, 1e-2), []
    for _ in range(10):
        levels = neck(model(images()))
        assert [tuple(level.shape) for level in levels] == [(2, 8, n, n) for n in (8, 4, 2)]
        loss = sum((level - 1).square().mean() for level in levels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    after = model.state_dict()
    kept = {name for name, value in before.items() if torch.equal(value, after[name])}
    frozen = re.compile(r'patch_embed\.|cls_token$|pos_embed$|blocks\.0\.')
    assert kept == set(filter(frozen.match, before))


@pytest.mark.parametrize(
    ('stages', 'frozen'),
    [
        (-1, '(?!)'),
        (0, r'patch_embed\.|cls_token$|pos_embed$'),
        (2, r'patch_embed\.|cls_token$|pos_embed$|blocks\.[01]\.'),
        (3, ''),
    ],
)
def test_frozen_stages(stages, frozen):
    model = vit(frozen_stages=stages, drop_path_rate=0.5).train()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (re.match(frozen, name) is None), name
    assert [block.training for block in model.blocks] == [i >= stages for i in range(3)]
    assert model.norm.training == (stages < 3)
    assert model.training
    assert not any(module.training for module in model.eval().modules())


def test_frozen_blocks_drop_no_paths():
    torch.manual_seed(0)
    model = vit(frozen_stages=2, out_indices=(1, 2), drop_path_rate=0.9).train()
    runs = [model(images(16).repeat(4, 1, 1, 1)) for _ in range(2)]
    assert torch.equal(runs[0][0], runs[1][0])
    assert not torch.equal(runs[0][1], runs[1][1])  # the third block does


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(out_indices=3), 'out_indices must be integers from -3 to 2, as arch has 3 blocks'),
        (dict(out_indices=(0, -4)), 'out_indices must be integers from -3 to 2'),
        (dict(out_indices=()), 'out_indices must be integers'),
        (dict(out_indices='01'), 'out_indices must be integers'),
        (dict(out_indices=True), 'out_indices must be integers'),
        (dict(out_indices=(1, 0)), r'must rise, each block once, got \(1, 0\)'),
        (dict(out_indices=(2, -1)), r'must rise, .* which are blocks \[2, 2\]'),
        (dict(frozen_stages=4), 'frozen_stages must be an integer from -1 to 3'),
        (dict(frozen_stages=1.0), 'frozen_stages must be an integer'),
        (
            dict(frozen_stages=0, mole=dict(num_experts=8, rank=2)),
            'frozen_stages is 0: .*leave it out',
        ),
        (dict(out_type='raw'), "'cls_avg' or 'featmap', got 'raw'"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(UserError, match=message):
        ElasticViT(ARCH, **IMAGE | dict(out_type='featmap') | options)


@pytest.fixture
def exported(tmp_path):
    """A supernet with experts, and the folder of an exported subnet."""
    model = trained_like(tiny_model())
    return model, export_subnet(model, SHALLOW, tmp_path / 'exported')


def started(file, arch=SHALLOW, **options) -> ElasticViT:
    """A backbone as a stock classifier of MMPretrain initialises it."""
    init_cfg = dict(type='Pretrained', checkpoint=str(file), **options.pop('init_cfg', {}))
    backbone = dict(arch=arch, out_type='featmap', init_cfg=init_cfg, **IMAGE | options)
    model = MODELS.build(
        dict(
            type='mmpretrain.ImageClassifier',
            backbone=dict(type='tas_lora.ElasticViT', **backbone),
            head=dict(type='mmpretrain.LinearClsHead', num_classes=7, in_channels=16),
        )
    )
    model.init_weights()
    return model.backbone.eval()


@torch.no_grad()
@pytest.mark.parametrize('init_cfg', [{}, dict(prefix='backbone.')])
def test_an_exported_subnet_gives_the_maps_of_the_supernet(exported, init_cfg):
    supernet, folder = exported
    backbone = started(
        folder / 'weights.safetensors',
        str(folder / 'architecture.json'),
        out_indices=(0, 1),
        init_cfg=init_cfg,
    )
    supernet.backbone.out_type, supernet.backbone.out_indices = 'featmap', (0, 2)
    supernet.set_subnet(SHALLOW)
    supernet.merge_experts()
    expected = supernet.backbone(images(), SHALLOW)
    for found, wanted in zip(backbone(images()), expected, strict=True):
        assert (found - wanted).abs().max() <= 1e-5


def test_weights_of_a_whole_classifier_start_a_backbone(tmp_path):
    model = randomize(tiny_model(mole=False))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'weights.pth')
    backbone = started(tmp_path / 'weights.pth', ARCH)
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(backbone.state_dict()[name], value)


def test_positions_are_resized_to_another_image(exported):
    _, folder = exported
    small, large = (
        started(folder / 'weights.safetensors', img_size=side).pos_embed for side in (8, 16)
    )
    assert large.shape == (1, 65, 16)
    assert torch.equal(small[:, 0], large[:, 0])
    grids = [value[0, 1:].T.unflatten(1, (side, side)) for value, side in ((small, 4), (large, 8))]
    resized = F.interpolate(grids[0][None], (8, 8), mode='bicubic', align_corners=False)[0]
    torch.testing.assert_close(grids[1], resized)


def test_weights_that_do_not_fit_are_refused(exported, tmp_path):
    _, folder = exported
    file = folder / 'weights.safetensors'
    with pytest.raises(UserError, match=r'init_cfg.checkpoint .*: .* depth 2 .*, 3 in the config'):
        started(file, Subnet(16, (1, 2, 2), (2.0, 1.0, 1.0)))
    with pytest.raises(UserError, match='does not exist'):
        started(folder / 'other.safetensors')
    torch.save(dict(state_dict=dict(weight=torch.zeros(2))), tmp_path / 'other.pth')
    with pytest.raises(UserError, match='these are not weights of an ElasticViT'):
        started(tmp_path / 'other.pth')
    torch.save(dict(state_dict=nn.Linear(2, 2)), tmp_path / 'module.pth')
    with pytest.raises(UserError, match='such files can run code'):
        started(tmp_path / 'module.pth')
    with pytest.raises(UserError, match=r"prefix must be .*, got 'encoder'"):
        started(file, init_cfg=dict(prefix='encoder'))
    with pytest.raises(UserError, match="init_cfg must be dict\\(type='Pretrained', checkpoint="):
        started(file, init_cfg=dict(strict=True))


@torch.no_grad()
@pytest.mark.parametrize('head', ['LinearClsHead', 'VisionTransformerClsHead'])
@pytest.mark.parametrize('kind', ['mmpretrain.ImageClassifier', 'tas_lora.SupernetClassifier'])
def test_heads_of_mmpretrain_go_on_a_backbone_of_one_width(kind, head):
    head = dict(type=f'mmpretrain.{head}', num_classes=7, in_channels=24)
    backbone = dict(type='tas_lora.ElasticViT', arch=ARCH.to_dict(), **IMAGE)
    model = randomize(MODELS.build(dict(type=kind, backbone=backbone, head=head))).eval()
    linear = next(layer for layer in model.head.modules() if isinstance(layer, nn.Linear))
    (feature,) = model.backbone(images())
    expected = feature @ linear.weight.T + linear.bias
    torch.testing.assert_close(model(images(), mode='tensor'), expected)
