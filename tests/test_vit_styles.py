"""Backbones in other styles than AutoFormer's, sliced and skipped, against a plain reference."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_feature_maps import without_branches
from tiny import IMAGE, MOLE, images, randomize, tiny_config
from torch import nn

from tas_lora import Subnet, UserError, load_supernet
from tas_lora.analysis.features import feature_similarity
from tas_lora.models import ElasticViT
from tas_lora.structures import ViTStyle, ratio_of

ARCH = Subnet(24, (2, 3, 2, 3), (2.0, 1.0, 2.0, 1.0))
SIZES = dict(img_size=8, patch_size=2, in_channels=1, head_dim=8, max_relative_position=None)
BY_PART = dict(qkv_bias_by_part=True)
STYLES = [
    dict(num_prefix_tokens=0, final_norm='pooled', act='gelu_tanh', norm_eps=1e-3),
    dict(num_prefix_tokens=0, prefix_positions=False, final_norm='none', pre_norm=True),
    dict(num_prefix_tokens=3, prefix_positions=False, layer_scale=0.5, act='quick_gelu'),
    dict(num_prefix_tokens=2, layer_scale=1e-3, final_norm='tokens', pre_norm=True),
    dict(final_norm='pooled'),
]
SUBNETS = [ARCH, Subnet(16, (1, 2), (1.0, 1.5)), Subnet(8, (2, 1, 2), (2.0, 1.0, 1.0))]


def vit(style: dict, **options) -> ElasticViT:
    torch.manual_seed(0)
    return randomize(ElasticViT(ARCH, **SIZES, style=BY_PART | style, **options), std=0.3)


def reference(
    model: ElasticViT, x: torch.Tensor, subnet: Subnet, blocks: list[int]
) -> torch.Tensor:
    """Tokens before the last norm, by matrix products with weights cut out by hand."""
    style, state, C = model.style, model.state_dict(), subnet.embed_dim

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        weight, bias = (state[f'{name}.{part}'][:C] for part in ('weight', 'bias'))
        return F.layer_norm(x, (C,), weight, bias, style.norm_eps)

    acts = dict(
        gelu=nn.GELU(), gelu_tanh=nn.GELU('tanh'), quick_gelu=lambda x: x * (1.702 * x).sigmoid()
    )
    x = F.conv2d(x, state['patch_embed.weight'][:C], state['patch_embed.bias'][:C], stride=2)
    x, positions = x.flatten(2).mT, state['pos_embed'][..., :C]
    P = style.num_prefix_tokens
    prefix = state['cls_token'][..., :C].expand(len(x), -1, -1) if P else x[:, :0]
    if style.prefix_positions:
        x = torch.cat([prefix, x], 1) + positions
    else:
        x = torch.cat([prefix, x + positions], 1)
    x = norm('pre_norm', x) if style.pre_norm else x
    for i, heads, hidden in zip(blocks, subnet.num_heads, subnet.hidden_dims, strict=True):
        own = {k.removeprefix(f'blocks.{i}.'): v for k, v in state.items() if f's.{i}.' in k}
        inner, full = heads * 8, ARCH.num_heads[i] * 8
        q, k, v = (
            norm(f'blocks.{i}.attn_norm', x) @ own['attn.qkv.weight'][part, :inner, :C].T
            + own['attn.qkv.bias'][part * full : part * full + inner]
            for part in range(3)
        )
        q, k, v = (t.unflatten(2, (heads, 8)).transpose(1, 2) for t in (q, k, v))
        weights = (q @ k.mT / 8**0.5).softmax(-1)
        y = (weights @ v).transpose(1, 2).flatten(2)
        y = y @ own['attn.proj.weight'][:C, :inner].T + own['attn.proj.bias'][:C]
        x = x + y * own.get('attn_scale', torch.ones(C))[:C]
        y = norm(f'blocks.{i}.ffn_norm', x) @ own['fc1.weight'][:hidden, :C].T
        y = acts[style.act](y + own['fc1.bias'][:hidden])
        y = y @ own['fc2.weight'][:C, :hidden].T + own['fc2.bias'][:C]
        x = x + y * own.get('mlp_scale', torch.ones(C))[:C]
    return x


@pytest.mark.parametrize('style', STYLES)
@pytest.mark.parametrize('subnet', SUBNETS)
@torch.no_grad()
def test_slices_follow_the_reference(style, subnet):
    model, order = vit(style, block_order=[3, 1, 0, 2]), [3, 1, 0, 2]
    tokens = reference(model, images(), subnet, sorted(order[: subnet.depth]))
    P, C, place = model.style.num_prefix_tokens, subnet.embed_dim, model.style.final_norm
    final = nn.LayerNorm(C, model.style.norm_eps)
    if place != 'none':
        final.weight.copy_(model.norm.weight[:C])
        final.bias.copy_(model.norm.bias[:C])
    tokens = final(tokens) if place == 'tokens' else tokens
    mean = tokens[:, P:].mean(1)
    torch.testing.assert_close(
        model(images(), subnet)[-1], final(mean) if place == 'pooled' else mean
    )
    if P and place != 'pooled':
        model.out_type = 'cls_avg'
        both = torch.cat([tokens[:, 0], mean], 1)
        torch.testing.assert_close(model(images(), subnet)[-1], both)


def test_skipped_blocks_pass_their_input_on():
    model = vit({}, block_order=[2, 0, 1, 3], out_type='featmap', out_indices=(0, 1, 2, 3))
    model.norm = nn.Identity()
    first, skipped, third, last = model(images(), Subnet(16, (1, 1), (1.0, 1.0)))
    assert torch.equal(first, skipped)
    assert torch.equal(third, last)
    assert not torch.equal(skipped, third)
    without_branches([model.blocks[1], model.blocks[3]])  # as if they were skipped at full width
    full = Subnet(24, (2, 2), (2.0, 2.0))
    torch.testing.assert_close(model(images(), full)[-1], model(images(), ARCH)[-1])


def test_a_block_keeps_its_place_in_the_router():
    """The experts of a block get the gates of that block, whatever else is skipped."""
    config = tiny_config(arch=Subnet(24, (2, 2, 2), (2.0, 2.0, 2.0)))
    config['model']['backbone']['block_order'] = [2, 0, 1]
    model = load_supernet(config)
    model.router.head_bias.data.normal_()
    model.router.head_weight.data.zero_()  # gates depend on group and place only
    deep, shallow = (model.router(Subnet(24, (2,) * depth, (2.0,) * depth)) for depth in (3, 2))
    torch.testing.assert_close(shallow, deep[[0, 2]])
    assert not torch.allclose(shallow, deep[:2])


def ranked(order: list[int] | None, mole: bool = True):
    config = tiny_config(mole, arch=Subnet(24, (2, 2, 2), (2.0, 2.0, 2.0)))
    config['model']['backbone']['block_order'] = order
    return load_supernet(config)


@pytest.mark.parametrize('mole', [False, True])
def test_weights_of_ranked_blocks_bring_their_order(mole, tmp_path):
    ordered, plain = randomize(ranked([2, 0, 1], mole)), ranked(None, mole)
    torch.save(dict(state_dict=ordered.state_dict()), tmp_path / 'ordered.pth')
    plain.load_state_dict(torch.load(tmp_path / 'ordered.pth', weights_only=True)['state_dict'])
    assert tuple(plain.backbone.block_order) == (2, 0, 1)
    for model in (ordered, plain):
        model.set_subnet(Subnet(24, (2, 1), (1.0, 2.0)))
    assert torch.equal(ordered(images()), plain(images()))
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'ordered.pth'))
    mole = MOLE if mole else None
    backbone = ElasticViT(ordered.backbone.arch, **IMAGE, mole=mole, init_cfg=init_cfg)
    backbone.init_weights()
    assert tuple(backbone.block_order) == (2, 0, 1)
    ranked([2, 0, 1], mole is not None).load_state_dict(ordered.state_dict())
    with pytest.raises(UserError, match=r'block_order is \[1, 0, 2\], and that of the weights is'):
        ranked([1, 0, 2], mole is not None).load_state_dict(ordered.state_dict())


def test_the_head_of_two_parts_slices_each():
    config = tiny_config(mole=False)
    config['model']['backbone']['out_type'] = 'cls_avg'
    config['model']['head'].pop('in_channels')
    model = load_supernet(config)
    assert model.head.fc.weight.shape == (5, 48)
    model.set_subnet(Subnet(16, (1, 2), (1.0, 2.0)))
    feature = model.extract_feat(images())[-1]
    weight = torch.cat([model.head.fc.weight[:, :16], model.head.fc.weight[:, 24:40]], 1)
    torch.testing.assert_close(model(images()), feature @ weight.T + model.head.fc.bias)


def test_features_of_two_parts_are_compared_part_by_part():
    rng = np.random.default_rng(0)
    wide, narrow = rng.normal(size=(6, 2, 5)), rng.normal(size=(6, 2, 3))
    a, b = wide[..., :3].reshape(6, 6), narrow.reshape(6, 6)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    found = feature_similarity([torch.tensor(wide), torch.tensor(narrow)])
    assert found[0, 1] == pytest.approx(cosine.mean())


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(style=dict(act='relu')), r"ElasticViT.style.act must be one of 'gelu' or"),
        (dict(style=dict(actt='gelu')), r'ElasticViT.style must be a dict of some of \('),
        (dict(style=dict(layer_scale='1')), r"style.layer_scale must be a number or None, got '1'"),
        (dict(style=dict(num_prefix_tokens=0), out_type='cls_token'), 'there is no class token'),
        (dict(style=dict(num_prefix_tokens=2), max_relative_position=3), 'know one class token'),
        (
            dict(style=dict(final_norm='pooled'), out_type='cls_avg'),
            "has no form for out_type 'cls_",
        ),
        (dict(block_order=[0, 1, 2, 2]), r'block_order must hold each block from 0 to 3 once'),
        (dict(block_order='0123'), r"block_order must hold each block from 0 to 3 once, .*'0123'"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(UserError, match=message):
        ElasticViT(ARCH, **SIZES | options)


def test_a_subnet_is_held_against_the_blocks_that_it_runs():
    model = vit({}, block_order=[1, 3, 0, 2])
    model.check_fits(Subnet(24, (3, 3), (1.0, 1.0)))
    with pytest.raises(UserError, match=r'num_heads\[0\] is 3, the supernet has 2'):
        model.check_fits(Subnet(24, (3, 3, 3), (1.0, 1.0, 1.0)))


def test_a_ratio_gives_back_the_hidden_width():
    assert all(int(w * ratio_of(h, w)) == h for w in (24, 192, 1152) for h in range(1, 5000))


def test_a_style_is_a_plain_dict_in_configs():
    style = ViTStyle(num_prefix_tokens=5, norm_eps=1e-6)
    assert ViTStyle.coerce(style.to_dict()) == style
    assert ViTStyle.coerce(None) == ViTStyle()
