"""The exported network against the supernet it was cut from."""

import ast
import json

import pytest
import torch
from conftest import ROOT, call_tool
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny import IMAGE, SPACE, randomize, repeatable, tiny_config, tiny_model
from vectors import VECTORS, images, model_config, official_weights, subnet

from tas_lora import Subnet, UserError, count_params, export_subnet, load_supernet
from tas_lora.models.plain_vit import Grid, PlainAttention, load_plain_vit


def trained_like(model):
    """Give the experts weights other than zero."""
    generator = torch.Generator().manual_seed(0)
    for layer in model.backbone.mole_layers():
        layer.lora_b.data.normal_(std=0.5, generator=generator)
    model.router.head_weight.data.normal_(std=0.5, generator=generator)
    return model


@pytest.mark.parametrize('name', VECTORS)
def test_exports_reproduce_recorded_official_logits(name, tmp_path):
    entry = VECTORS[name]
    torch.save(official_weights(entry), tmp_path / 'official.pth')
    model = load_supernet(model_config(entry), tmp_path / 'official.pth')
    for case in entry['cases']:
        plain, _ = load_plain_vit(export_subnet(model, subnet(case['config']), tmp_path / 'out'))
        with torch.no_grad():
            difference = (plain(images(entry)) - torch.tensor(case['logits'])).abs().max()
        assert difference <= 2e-5


def test_experts_are_merged_into_the_export(tmp_path):
    model = trained_like(tiny_model())
    for choice in ('smallest', 'largest'):
        chosen = getattr(SPACE, choice)()
        plain, description = load_plain_vit(export_subnet(model, chosen, tmp_path / choice))
        model.set_subnet(chosen)
        batch = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = model(batch, mode='tensor')
            model.backbone.merge_experts(chosen, torch.zeros(chosen.depth, 4, 8))
            bare = model(batch, mode='tensor')
            model.unmerge_experts()
            assert (plain(batch) - expected).abs().max() <= 1e-4
        assert (bare - expected).abs().max() > 1e-2  # the experts do matter here
        assert Subnet.from_dict(description['subnet']) == chosen


def test_export_holds_the_subnet_and_nothing_else(tmp_path):
    model = tiny_model()
    chosen = Subnet(16, (1, 2), (2.0, 1.0))
    folder = export_subnet(model, chosen, tmp_path / 'out')
    weights = load_file(folder / 'weights.safetensors')
    stored = sum(w.numel() for w in weights.values())
    assert stored == count_params(chosen, **model.image_spec)
    assert json.loads((folder / 'architecture.json').read_text())['params'] == stored


def attention_by_hand(layer: PlainAttention, x: torch.Tensor, side: int, most: int):
    """AutoFormer's attention of one image (N, C), pair by pair, as its definition says."""
    H, D, N = layer.num_heads, layer.head_dim, side**2 + 1
    q, k, v = layer.qkv(x).view(N, 3, H, D).permute(1, 2, 0, 3)

    def embedding(rows, columns, i: int, j: int):
        if 0 in (i, j):  # the class token
            return rows[0] + columns[0]
        (a, b), (c, d) = divmod(i - 1, side), divmod(j - 1, side)
        down, right = (max(-most, min(most, step)) for step in (c - a, d - b))
        return rows[down + most + 1] + columns[right + most + 1]

    y = torch.zeros(N, H, D, dtype=x.dtype)
    for h in range(H):
        for i in range(N):
            pairs = [embedding(layer.key_rows, layer.key_columns, i, j) for j in range(N)]
            logits = torch.stack([q[h, i] @ (k[h, j] + pairs[j]) for j in range(N)])
            weights = (logits * D**-0.5).softmax(0)
            for j in range(N):
                y[i, h] += weights[j] * (
                    v[h, j] + embedding(layer.value_rows, layer.value_columns, i, j)
                )
    return layer.proj(y.flatten(1))


@repeatable
@given(
    side=st.integers(1, 4),
    most=st.integers(1, 5),
    num_heads=st.integers(1, 2),
    head_dim=st.sampled_from([4, 7, 8, 15]),
    seed=st.integers(0, 99),
)
def test_attention_is_that_of_the_definition(side, most, num_heads, head_dim, seed):
    torch.manual_seed(seed)
    layer = randomize(PlainAttention(12, num_heads, head_dim, most)).double()
    x = torch.randn(2, side**2 + 1, 12, dtype=torch.float64)
    grid = Grid(side, most, head_dim).double()
    with torch.no_grad():
        for bake in (False, True):
            if bake:
                layer.bake(grid)
            for image, y in zip(x, layer(x, grid), strict=True):
                torch.testing.assert_close(y, attention_by_hand(layer, image, side, most))


def test_plain_network_is_torch_alone():
    source = (ROOT / 'tas_lora/models/plain_vit.py').read_text()
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            modules.add(node.module.split('.')[0])
    assert modules == {'collections', 'hashlib', 'json', 'pathlib', 'torch', 'safetensors'}


def test_a_flipped_bit_of_the_weights_is_named(tmp_path):
    out = export_subnet(tiny_model(), SPACE.smallest(), tmp_path)
    load_plain_vit(out)
    content = bytearray((out / 'weights.safetensors').read_bytes())
    content[-5] ^= 1
    (out / 'weights.safetensors').write_bytes(content)
    with pytest.raises(ValueError, match='is damaged, or does not match architecture.json'):
        load_plain_vit(out)


def test_subnets_that_cannot_be_exported(tmp_path):
    model = tiny_model()
    with pytest.raises(UserError, match='embed_dim is 32, the supernet has 24'):
        export_subnet(model, Subnet(32, (1,), (1.0,)), tmp_path / 'out')
    with pytest.raises(UserError, match='belongs to no group of experts'):
        export_subnet(model, Subnet(20, (1,), (1.0,)), tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_supernets_that_are_more_than_a_plain_network(tmp_path):
    for part, change in (
        ('backbone', dict(out_type='featmap')),
        ('backbone', dict(out_indices=1)),
        ('neck', dict(type='GlobalAveragePooling')),
    ):
        config = tiny_config(mole=False)
        config['model'][part] = config['model'].get(part, {}) | change
        with pytest.raises(UserError, match='a supernet to export from has a backbone with'):
            export_subnet(load_supernet(config), SPACE.smallest(), tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_classes_are_named_in_the_description(tmp_path):
    model, names = tiny_model(), ['a', 'b', 'c', 'd', 'e']
    export_subnet(model, SPACE.smallest(), tmp_path, names)
    assert load_plain_vit(tmp_path)[1]['classes'] == names
    with pytest.raises(UserError, match='there are 2 names of classes for 5 logits'):
        export_subnet(model, SPACE.smallest(), tmp_path, names[:2])


@pytest.fixture
def plain(tmp_path):
    return load_plain_vit(export_subnet(trained_like(tiny_model()), SPACE.largest(), tmp_path))[0]


def test_what_is_baked_is_followed_by_nothing_but_evaluation(plain):
    """Tables move with the network, and are computed anew once weights may change."""
    torch.manual_seed(0)
    batch, attention = torch.randn(3, 1, 8, 8), plain.blocks[0].attn
    state = {name: value.clone() for name, value in plain.state_dict().items()}
    other = {name: torch.randn_like(value) for name, value in state.items()}
    assert not [name for name in state if 'baked' in name]
    assert plain.double().blocks[0].attn.baked_keys.dtype == torch.float64
    assert plain.float().eval().blocks[0].attn.baked_keys is not None
    with torch.no_grad():
        expected = plain(batch)
        plain.load_state_dict(other)
        assert attention.baked_keys is None
        renewed = plain(batch)
        assert (renewed - expected).abs().max() > 0.1
        torch.testing.assert_close(plain.bake()(batch), renewed)
        attention.key_rows.copy_(state['blocks.0.attn.key_rows'])
        changed = plain.train()(batch)
        assert (changed - renewed).abs().max() > 1e-3
        torch.testing.assert_close(plain.eval()(batch), changed)
        plain.bake().bake()
        torch.testing.assert_close(plain(batch), changed)
    plain.train()(batch).sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in attention.parameters())


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_other_precisions(plain, dtype):
    batch = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = plain(batch)
        found = plain.to(dtype)(batch.to(dtype))
        assert found.dtype == dtype
        assert (found.float() - expected).abs().max() <= 0.05 * expected.std()
        again = plain.train()(batch.to(dtype))
    assert (again.float() - expected).abs().max() <= 0.05 * expected.std()


@pytest.mark.parametrize('shape', [(2, 1, 4, 16), (2, 3, 8, 8), (1, 8, 8), (2, 1, 16, 16)])
def test_images_of_another_shape_are_refused(plain, shape):
    with pytest.raises(ValueError, match=r'images must be \(B, 1, 8, 8\), got '):
        plain(torch.zeros(shape))


# Networks of other styles

STYLES = dict(
    dinov2=dict(
        style=dict(num_prefix_tokens=5, prefix_positions=False, norm_eps=1e-6, layer_scale=0.5),
        out_type='cls_token',
        block_order=[2, 0, 1],
    ),
    clip=dict(style=dict(pre_norm=True, act='quick_gelu'), out_type='cls_token'),
    no_class_token=dict(
        style=dict(num_prefix_tokens=0, final_norm='pooled', act='gelu_tanh', norm_eps=1e-6)
    ),
    no_norm=dict(style=dict(final_norm='none', layer_scale=0.1), block_order=[1, 2, 0]),
    both=dict(style=dict(num_prefix_tokens=2), out_type='cls_avg'),
    features=dict(style=dict(layer_scale=0.5), out_type='cls_token', block_order=[1, 0, 2]),
    tables=dict(style=dict(layer_scale=0.5), max_relative_position=2, block_order=[2, 1, 0]),
)


def styled_model(name: str, mole: bool = True):
    """A supernet of one of ``STYLES`` with random weights, and experts that do something."""
    config = tiny_config(mole)
    own = dict(STYLES[name], style=dict(STYLES[name]['style'], qkv_bias_by_part=True))
    config['model']['backbone'] |= dict(max_relative_position=None) | own
    del config['model']['head']['in_channels']  # it follows from the features
    if name == 'features':
        del config['model']['head']
    torch.manual_seed(0)
    model = randomize(load_supernet(config), std=0.3)
    return trained_like(model) if mole else model


@pytest.mark.parametrize('name', STYLES)
def test_networks_of_other_styles_are_exported(tmp_path, name):
    model = styled_model(name)
    batch = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    for subnet_ in (SPACE.smallest(), SPACE.largest(), Subnet(16, (2, 1), (1.0, 2.0))):
        plain, description = load_plain_vit(export_subnet(model, subnet_, tmp_path))
        model.set_subnet(subnet_)
        with torch.no_grad():
            expected = model(batch, mode='tensor')
            expected = expected[-1] if name == 'features' else expected
            assert (plain(batch) - expected).abs().max() <= 1e-5 * expected.std()
        assert expected.std() > 0.1
        stored = sum(parameter.numel() for parameter in plain.parameters())
        assert stored == description['params'] == count_params(subnet_, **model.image_spec)
        assert (description['network'].get('norm_eps') == 1e-6) == (
            name in ('dinov2', 'no_class_token')
        )
    assert not [key for key in plain.state_dict() if 'scale' in key]


def test_an_export_is_of_the_blocks_that_run(tmp_path):
    """Of blocks ranked 2, 0, 1 a subnet of two has 0 and 2; their factors are in the weights."""
    model = styled_model('dinov2', mole=False)
    plain, _ = load_plain_vit(export_subnet(model, Subnet(16, (1, 1), (1.0, 1.0)), tmp_path))
    for ours, theirs in zip(plain.blocks, (model.backbone.blocks[i] for i in (0, 2)), strict=True):
        assert torch.equal(ours.ffn_norm.weight, theirs.ffn_norm.weight[:16])
        qkv = theirs.attn.qkv.bias.view(3, -1)[:, :8].flatten()  # of one head, part by part
        assert torch.equal(ours.attn.qkv.bias, qkv)
        assert torch.equal(ours.fc2.bias, (theirs.fc2.bias * theirs.mlp_scale)[:16])
        scaled = theirs.attn.proj.weight[:16, :8] * theirs.attn_scale[:16, None]
        assert torch.equal(ours.attn.proj.weight, scaled)


def test_autoformers_networks_are_described_as_before(tmp_path):
    """Readers of earlier releases take them."""
    description = load_plain_vit(export_subnet(tiny_model(), SPACE.smallest(), tmp_path))[1]
    fields = {'embed_dim', 'num_heads', 'hidden_dims', 'pooling', 'num_classes', *IMAGE}
    assert set(description['network']) == fields


def test_features_are_no_classes_to_predict(tmp_path, capsys):
    folder = export_subnet(styled_model('features'), SPACE.smallest(), tmp_path)
    assert call_tool('predict.py', folder, tmp_path / 'image.png') == 2
    assert 'gives features, not classes; load it by its plain_vit.py' in capsys.readouterr().err
