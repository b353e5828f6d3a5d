"""The exported network in its variants, against timm's own vision transformer; and its checks."""

import json
import re
from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from timm.layers import quick_gelu
from timm.models.vision_transformer import VisionTransformer
from tiny import randomize
from torch import nn

from tas_lora.models.plain_vit import FORMAT, PlainViT, load_plain_vit

SIZES = dict(img_size=8, patch_size=2, num_classes=5, embed_dim=16, depth=2, num_heads=2)
TANH = partial(nn.GELU, approximate='tanh')
NORM = partial(nn.LayerNorm, eps=0.1)  # so large that another value shows
QUICK = type('QuickGELU', (nn.Module,), dict(forward=lambda self, x: quick_gelu(x)))

# Arguments of timm's network, and the fields that say the same of ours.
FAMILIES = dict(
    vit=(dict(norm_layer=NORM), dict(norm_eps=0.1)),
    average=(
        dict(global_pool='avg', fc_norm=True, norm_layer=NORM),
        dict(pooling='avg_featmap', final_norm='pooled', norm_eps=0.1),
    ),
    no_class_token=(
        dict(class_token=False, global_pool='avg', fc_norm=False, act_layer=TANH),
        dict(pooling='avg_featmap', num_prefix_tokens=0, act='gelu_tanh', norm_eps=1e-6),
    ),
    no_norm=(
        dict(class_token=False, global_pool='avg', fc_norm=False, final_norm=False, reg_tokens=2),
        dict(pooling='avg_featmap', num_prefix_tokens=2, final_norm='none', norm_eps=1e-6),
    ),
    dinov2=(
        dict(init_values=0.1, reg_tokens=4, no_embed_class=True),
        dict(num_prefix_tokens=5, prefix_positions=False, norm_eps=1e-6),
    ),
    clip=(
        dict(pre_norm=True, act_layer=QUICK, norm_layer=nn.LayerNorm),
        dict(pre_norm=True, act='quick_gelu'),
    ),
    features=(dict(num_classes=0), dict(num_classes=0, norm_eps=1e-6)),
)
NAMES = {
    'patch_embed.proj.': 'patch_embed.',
    'norm_pre.': 'pre_norm.',
    'fc_norm.': 'norm.',
    '.norm1.': '.attn_norm.',
    '.norm2.': '.ffn_norm.',
    '.mlp.': '.',
}


def timm_network(**arguments) -> VisionTransformer:
    torch.manual_seed(0)
    return randomize(VisionTransformer(**SIZES | arguments), std=0.3).eval()


def as_plain(theirs: VisionTransformer, **fields) -> PlainViT:
    """The same network as ours: names changed, LayerScale in the weights it scales."""
    state = theirs.state_dict()
    for i in range(len(theirs.blocks)):
        for scale, layer in (('ls1', 'attn.proj'), ('ls2', 'mlp.fc2')):
            gamma = state.pop(f'blocks.{i}.{scale}.gamma', torch.ones(SIZES['embed_dim']))
            for name in (f'blocks.{i}.{layer}.weight', f'blocks.{i}.{layer}.bias'):
                state[name] = state[name] * (gamma[:, None] if 'weight' in name else gamma)
    first = [state.pop(name) for name in ('cls_token', 'reg_token') if name in state]
    plain = PlainViT(**network(len(theirs.blocks)) | fields)
    for old, new in NAMES.items():
        state = {name.replace(old, new): value for name, value in state.items()}
    state.setdefault('patch_embed.bias', torch.zeros(SIZES['embed_dim']))  # CLIP has none
    plain.load_state_dict(state | (dict(cls_token=torch.cat(first, dim=1)) if first else {}))
    return plain.eval()


def network(depth: int = 2) -> dict:
    """Fields of the class token's network of ``SIZES``."""
    sizes = dict(embed_dim=16, img_size=8, patch_size=2, in_channels=3, num_classes=5, head_dim=8)
    blocks = dict(num_heads=[2] * depth, hidden_dims=[64] * depth)
    return dict(**sizes, **blocks, max_relative_position=None, pooling='cls_token')


@pytest.mark.parametrize('name', FAMILIES)
def test_the_network_is_timms(name):
    arguments, fields = FAMILIES[name]
    theirs = timm_network(**arguments)
    ours, images = as_plain(theirs, **fields).bake(), torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        expected = theirs(images)
        torch.testing.assert_close(ours(images), expected)
        if name != 'average':  # where timm has its norm in the head
            torch.testing.assert_close(ours.tokens(images), theirs.forward_features(images))
    assert expected.std() > 0.1


def test_both_features_are_class_token_then_mean():
    theirs = timm_network()
    ours, images = as_plain(theirs, norm_eps=1e-6), torch.randn(3, 3, 8, 8)
    both = PlainViT(**network() | dict(pooling='cls_avg', norm_eps=1e-6)).eval()
    state = ours.state_dict() | {'head.weight': torch.randn(5, 32)}
    both.load_state_dict(state)
    with torch.no_grad():
        tokens = theirs.forward_features(images)
        feature = torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1)
        expected = feature @ state['head.weight'].T + state['head.bias']
        torch.testing.assert_close(both(images), expected)


@pytest.fixture
def exported(tmp_path):
    """Writes and loads a folder of a network without relative positions."""

    def write(**changes):
        fields = network() | changes
        fields = {name: value for name, value in fields.items() if value != 'missing'}
        save_file(PlainViT(**network()).state_dict(), tmp_path / 'weights.safetensors')
        content = dict(format=FORMAT, network=fields, preprocess={})
        (tmp_path / 'architecture.json').write_text(json.dumps(content))
        return load_plain_vit(tmp_path)[0]

    return write


def test_optional_fields_are_read(exported):
    assert exported(act='gelu_tanh', norm_eps=1, pre_norm=False).blocks[0].act == 'gelu_tanh'
    assert exported(max_relative_position=None).grid is None


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(act='relu'), "network.act must be 'gelu' or 'gelu_tanh' or 'quick_gelu', got 'relu'"),
        (dict(act=['gelu']), 'network.act must be '),
        (dict(final_norm=True), "network.final_norm must be 'tokens' or 'pooled' or 'none', got T"),
        (dict(pre_norm=1), 'network.pre_norm must be False or True, got 1'),
        (dict(pre_norm=True), 'differ in 2 tensors, the first pre_norm.bias: missing in the weigh'),
        (dict(prefix_positions=None), 'network.prefix_positions must be True or False, got None'),
        (dict(prefix_positions=False), 'differ in 1 tensors, the first pos_embed'),
        (dict(norm_eps=0), 'network.norm_eps must be a positive number, got 0'),
        (dict(norm_eps='small'), 'network.norm_eps must be a positive number'),
        (dict(norm_eps=float('nan')), 'network.norm_eps must be a positive number, got nan'),
        (dict(num_prefix_tokens=0), 'network.num_prefix_tokens must be a positive integer, got 0'),
        (dict(num_prefix_tokens=True), 'network.num_prefix_tokens must be a positive integer'),
        (
            dict(num_prefix_tokens=-1, pooling='avg_featmap'),
            'network.num_prefix_tokens must be an integer from 0, got -1',
        ),
        (dict(num_prefix_tokens=10**8), 'differ in 2 tensors, the first cls_token'),
        (dict(pooling='max'), "network.pooling must be 'avg_featmap' or 'cls_token' or 'cls_avg'"),
        (dict(pooling='cls_avg'), 'differ in 1 tensors, the first head.weight'),
        (
            dict(pooling='cls_avg', final_norm='pooled'),
            "final_norm must not be 'pooled' with",
        ),
        (
            dict(num_prefix_tokens=2, max_relative_position=2),
            'num_prefix_tokens must be 1 with',
        ),
        (dict(num_classes=-1), 'network.num_classes must be an integer from 0, got -1'),
        (dict(max_relative_position=0), 'network.max_relative_position must be a positive integer'),
        (dict(max_relative_position='missing'), 'network must be a dict of '),
        (dict(layer_scale=1.0), 'network must be a dict of '),
        (dict(img_size=9), 'network.img_size must be a multiple of network.patch_size, 2'),
        (dict(img_size=400), 'differ in 1 tensors, the first pos_embed'),
        (
            dict(img_size=400, max_relative_position=2),
            'a multiple of network.patch_size, 2, up to 64 times',
        ),
    ],
)
def test_a_description_that_is_wrong_is_one_line(exported, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        exported(**changes)
    assert '\n' not in str(caught.value)
