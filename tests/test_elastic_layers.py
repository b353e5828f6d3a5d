"""Elastic layers at sliced widths against plain layers with the sliced weights."""

import math
from fnmatch import fnmatch

import pytest
import torch
from tiny import SPACE, every, images, randomize
from torch import nn

from tas_lora import Subnet, UserError
from tas_lora.models import ElasticViT
from tas_lora.models.layers import (
    ElasticAttention,
    ElasticLayerNorm,
    ElasticLinear,
    ElasticPatchEmbed,
    RelativePosition2D,
    fused_relative_attention,
    relative_attention,
    relative_index,
    tables_from_class_token,
    token_index,
)
from tas_lora.models.layers import attention as attention_module

WIDE = Subnet(24, [2, 2, 2, 2], [2.0] * 4)
NARROW = Subnet(16, [1, 1], [1.0, 1.0])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def assert_same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def plain(layer: nn.Module, weight, bias) -> nn.Module:
    """``layer`` in double precision with these weights."""
    layer.double().load_state_dict(dict(weight=weight, bias=bias))
    return layer


def small_vit(**kwargs) -> ElasticViT:
    vit = ElasticViT(
        WIDE, img_size=8, patch_size=2, in_channels=1, head_dim=8, max_relative_position=2, **kwargs
    )
    return randomize(vit)


# Layers


@pytest.mark.parametrize(('out', 'width'), [(7, 6), (7, 3), (2, 6), (4, 5), (1, 1)])
def test_sliced_linear_is_a_plain_one(out, width):
    layer = randomize(ElasticLinear(6, 7)).double()
    same = plain(nn.Linear(width, out), layer.weight[:out, :width], layer.bias[:out])
    x = torch.randn(2, 3, width).double()
    assert_same(layer(x, out), same(x))


@pytest.mark.parametrize(('out', 'width'), [(7, 6), (7, 3), (2, 6), (4, 5), (1, 1)])
def test_sliced_parts_are_plain_layers_with_a_bias_cut_in_order(out, width):
    layer = randomize(ElasticLinear(6, 7, parts=3)).double()
    parts = [
        plain(nn.Linear(width, out), weight[:out, :width], layer.bias[i * out : (i + 1) * out])
        for i, weight in enumerate(layer.weight)
    ]
    x = torch.randn(2, 3, width).double()
    assert_same(layer(x, out), torch.cat([part(x) for part in parts], dim=-1))


@pytest.mark.parametrize('parts', [1, 3])
def test_linear_without_a_width_is_full(parts):
    layer = randomize(ElasticLinear(6, 7, parts=parts))
    x = torch.randn(2, 6)
    assert torch.equal(layer(x), layer(x, 7))


@pytest.mark.parametrize('width', [1, 5, 8])
def test_sliced_layer_norm_is_a_plain_one_over_the_live_channels(width):
    layer = randomize(ElasticLayerNorm(8)).double()
    same = plain(nn.LayerNorm(width, eps=1e-5), layer.weight[:width], layer.bias[:width])
    x = torch.randn(2, 3, width).double()
    assert_same(layer(x), same(x))


@pytest.mark.parametrize('width', [1, 5, 8])
@pytest.mark.parametrize('size', [1, 2, 3])
def test_sliced_patch_embedding_is_a_plain_convolution(width, size):
    layer = randomize(ElasticPatchEmbed(3, 8, patch_size=3)).double()
    weight = layer.weight[:width, :, :size, :size]
    same = plain(nn.Conv2d(3, width, size, stride=size), weight, layer.bias[:width])
    x, side = torch.randn(2, 3, 6, 6).double(), 6 // size
    tokens = layer(x, width, size)
    grid = same(x)
    assert tokens.shape == (2, side**2, width)
    for patch in range(side**2):
        assert_same(tokens[:, patch], grid[:, :, patch // side, patch % side])


# Relative positions


def table_row(query: int, key: int, grid: int, reach: int, vertical: bool) -> int:
    """Row of a table for one pair of tokens, 0 being the class token."""
    if query == 0 or key == 0:
        return 0
    query_place, key_place = divmod(query - 1, grid), divmod(key - 1, grid)
    axis = 0 if vertical else 1
    offset = key_place[axis] - query_place[axis]
    return max(-reach, min(reach, offset)) + reach + 1


@pytest.mark.parametrize('grid', [1, 2, 3, 5])
@pytest.mark.parametrize('reach', [1, 2, 4, 14])
def test_relative_index_of_every_pair(grid, reach):
    tokens = range(grid**2 + 1)
    for index, vertical in zip(relative_index(grid, reach), (True, False), strict=True):
        assert index.tolist() == [
            [table_row(query, key, grid, reach, vertical) for key in tokens] for query in tokens
        ]


def test_relative_position_adds_a_vertical_and_a_horizontal_embedding():
    tables, index = randomize(RelativePosition2D(4, 2)), relative_index(2, 2)
    embedding = tables(index)
    for query in range(5):
        for key in range(5):
            row, column = (table_row(query, key, 2, 2, vertical) for vertical in (True, False))
            expected = tables.vertical[row] + tables.horizontal[column]
            assert torch.equal(embedding[query, key], expected)


@torch.no_grad()
def naive_attention(q, k, v, rel_k, rel_v):
    """Attention of one head on one image, one pair of tokens at a time."""
    tokens, width = q.shape
    out = torch.zeros_like(q)
    for i in range(tokens):
        scores = [
            sum(float(q[i, d] * (k[j, d] + rel_k[i, j, d])) for d in range(width)) / width**0.5
            for j in range(tokens)
        ]
        total = sum(map(math.exp, scores))
        for j, score in enumerate(scores):
            out[i] += math.exp(score) / total * (v[j] + rel_v[i, j])
    return out


@pytest.mark.parametrize(('batch', 'heads', 'tokens', 'width'), [(2, 3, 4, 5), (1, 1, 1, 2)])
def test_relative_attention_is_the_sum_over_pairs(batch, heads, tokens, width):
    q, k, v = torch.randn(3, batch, heads, tokens, width).double()
    rel_k, rel_v = torch.randn(2, tokens, tokens, width).double()
    out = relative_attention(q, k, v, rel_k, rel_v)
    for b in range(batch):
        for h in range(heads):
            assert_same(out[b, h], naive_attention(q[b, h], k[b, h], v[b, h], rel_k, rel_v))


@pytest.mark.parametrize('heads', [1, 2, 3])
def test_attention_uses_the_first_heads_and_channels(heads):
    def linear(kind, *sizes, parts=1):
        return ElasticLinear(*sizes, parts)

    layer = randomize(ElasticAttention(12, 3, 4, 2, linear)).double()
    x, inner = torch.randn(2, 5, 9).double(), 4 * heads
    rel_k, rel_v = (table(relative_index(2, 2)) for table in (layer.rel_pos_k, layer.rel_pos_v))
    query, key, value = (
        (x @ weight[:inner, :9].T + layer.qkv.bias[i * inner : (i + 1) * inner])
        for i, weight in enumerate(layer.qkv.weight)
    )
    mixed = torch.zeros(2, 5, inner).double()
    for b in range(2):
        for h in range(heads):
            cut = slice(4 * h, 4 * h + 4)
            parts = (tensor[b, :, cut] for tensor in (query, key, value))
            mixed[b, :, cut] = naive_attention(*parts, rel_k, rel_v)
    expected = mixed @ layer.proj.weight[:9, :inner].T + layer.proj.bias[:9]
    assert_same(layer(x, heads, token_index(2, 2, 4)), expected)


GRIDS = [(1, 3), (2, 1), (3, 2), (4, 14), (7, 3), (14, 14), (15, 9)]


@pytest.mark.parametrize(('grid', 'reach'), GRIDS)
@pytest.mark.parametrize('head_dim', [4, 64])
def test_fused_attention_is_the_explicit_one(grid, reach, head_dim):
    """Values, and gradients of activations and tables, clipped offsets included."""
    torch.manual_seed(grid)
    rel_k, rel_v = (randomize(RelativePosition2D(head_dim, reach)).double() for _ in range(2))
    qkv = torch.randn(3, 2, 3, grid**2 + 1, head_dim).double().requires_grad_(True)
    inputs = [qkv, *rel_k.parameters(), *rel_v.parameters()]
    pairs, index = relative_index(grid, reach), token_index(grid, reach, head_dim)
    explicit = relative_attention(*qkv, rel_k(pairs), rel_v(pairs))
    tables = tables_from_class_token(rel_k, rel_v)
    fused = fused_relative_attention(*qkv, *tables, index)
    assert (head_dim + index[1].shape[1]) % 16 == 0
    assert (fused - explicit).abs().max() < 1e-10
    weights = torch.randn_like(explicit)
    expected, found = (torch.autograd.grad((y * weights).sum(), inputs) for y in (explicit, fused))
    for one, other in zip(expected, found, strict=True):
        assert (one - other).abs().max() < 1e-9


@pytest.mark.parametrize('trains', [False, True])
@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_fused_attention_at_lower_precision(dtype, tolerance, trains):
    """The bound is on what the form adds: both forms at this precision, against float64."""
    torch.manual_seed(0)
    rel_k, rel_v = (randomize(RelativePosition2D(64, 14), std=0.02) for _ in range(2))
    qkv = torch.randn(3, 2, 3, 197, 64)
    pairs, index = relative_index(14, 14), token_index(14, 14, 64)
    with torch.no_grad():
        exact = relative_attention(*qkv.double(), rel_k(pairs).double(), rel_v(pairs).double())
        tables = tables_from_class_token(rel_k, rel_v)
    with torch.set_grad_enabled(trains):
        fused = fused_relative_attention(
            *qkv.to(dtype), *(table.to(dtype) for table in tables), index
        )
    assert fused.dtype == dtype
    assert (fused - exact).abs().max() < tolerance


@pytest.mark.parametrize(('at_once', 'size'), [(1, 1), (2**21, 1), (5 * 2 * 17**2, 1), (1, 3)])
def test_attention_in_bfloat16_without_gradients_is_two_products(monkeypatch, at_once, size):
    """On some images after others, no less exact than logits of 8 bits allow.

    A logit of up to ``largest`` is rounded by 2**-8 of it, and by as much are weights, on either
    side of the fraction; each is rounded again, as is the result.
    """
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 12, 2, 17, 16).bfloat16()
    q, k = size * q, size * k
    largest = float((q.double() @ k.double().transpose(-2, -1) / 4).abs().max())
    exact = (q.double() @ k.double().transpose(-2, -1) / 4).softmax(-1) @ v.double()
    monkeypatch.setattr(attention_module, '_LOGITS_AT_ONCE', at_once)
    kernel = attention_module.softmax_attention(q, k, v, 0.25)
    # Calling the kernel would fail from here on.
    monkeypatch.setattr(torch.nn.functional, 'scaled_dot_product_attention', None)
    with torch.no_grad():
        products = attention_module.softmax_attention(q, k, v, 0.25)
    assert products.dtype == torch.bfloat16
    assert (kernel - exact).abs().max() < 2**-8 * exact.abs().max()
    assert (products - exact).abs().max() < 2**-8 * (2 * largest + 2) * v.abs().max()


def test_fused_attention_under_autocast_stays_in_bfloat16():
    layer = randomize(
        ElasticAttention(16, 2, 8, 3, lambda kind, *s, parts=1: ElasticLinear(*s, parts))
    )
    index, seen = token_index(3, 3, 8), []
    attend = layer.attend
    layer.attend = lambda *args: seen.append(attend(*args)) or seen[0]
    with torch.autocast('cpu', torch.bfloat16):
        layer(torch.randn(2, 10, 16), 2, index)
    assert seen[0].dtype == torch.bfloat16


def test_fused_attention_takes_its_share_of_memory():
    """No tensor of tokens x tokens x width is made."""
    sizes = []

    def keep(tensor):
        sizes.append(tensor.numel())
        return tensor

    index, tokens = token_index(14, 14, 64), 197
    layer = ElasticAttention(128, 2, 64, 14, lambda kind, *s, parts=1: ElasticLinear(*s, parts))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(torch.randn(1, tokens, 128), 2, index)
    assert max(sizes) < tokens * tokens * 64 / 4


# The backbone

C, D, F = NARROW.embed_dim, 8, 16  # width, width of all heads, width of the MLP
LIVE = {
    'patch_embed.*': (slice(C),),
    '*cls_token': (..., slice(C)),
    '*pos_embed': (..., slice(C)),
    '*norm.*': (slice(C),),
    '*qkv.weight': (..., slice(D), slice(C)),
    '*qkv.bias': (slice(3 * D),),
    '*proj.weight': (slice(C), slice(D)),
    '*proj.bias': (slice(C),),
    '*fc1.weight': (slice(F), slice(C)),
    '*fc1.bias': (slice(F),),
    '*fc2.weight': (slice(C), slice(F)),
    '*fc2.bias': (slice(C),),
    '*rel_pos_?.*': (...,),
}


@pytest.fixture(scope='module')
def grads():
    """Gradients of every parameter of a supernet that runs ``NARROW``."""
    torch.manual_seed(0)
    vit = small_vit()
    vit(images(), NARROW)[0].square().sum().backward()
    return {name: parameter.grad for name, parameter in vit.named_parameters()}


def test_gradients_outside_the_slice_are_exactly_zero(grads):
    active = {name: grad for name, grad in grads.items() if grad is not None}
    for name, grad in active.items():
        (live,) = (cut for pattern, cut in LIVE.items() if fnmatch(name, pattern))
        assert grad[live].any(), name
        outside = grad.clone()
        outside[live] = 0
        assert not outside.any(), name


def test_parameters_of_blocks_beyond_the_depth_get_no_gradient(grads):
    beyond = {name for name in grads if name.startswith(('blocks.2.', 'blocks.3.'))}
    assert beyond
    assert {name for name, grad in grads.items() if grad is None} == beyond


def test_key_biases_get_no_gradient(grads):
    bias = grads['blocks.0.attn.qkv.bias']
    assert bias[:D].all()
    assert not bias[D : 2 * D].any()
    assert bias[2 * D : 3 * D].all()


@pytest.mark.parametrize('out_type', ['avg_featmap', 'cls_token'])
def test_a_subnet_ignores_what_lies_outside_its_slice(out_type):
    vit = small_vit(out_type=out_type)
    before = vit(images(), NARROW)[0]
    with torch.no_grad():
        for name, parameter in vit.named_parameters():
            if name.startswith(('blocks.2.', 'blocks.3.')):
                parameter.fill_(float('nan'))
                continue
            (live,) = (cut for pattern, cut in LIVE.items() if fnmatch(name, pattern))
            kept = parameter[live].clone()
            parameter.fill_(float('nan'))
            parameter[live] = kept
    assert torch.equal(vit(images(), NARROW)[0], before)


def test_pooling_averages_the_patches_or_takes_the_class_token():
    for out_type, pool in (
        ('avg_featmap', lambda tokens: tokens[:, 1:].mean(dim=1)),
        ('cls_token', lambda tokens: tokens[:, 0]),
    ):
        vit, normed = small_vit(out_type=out_type), []
        vit.norm.register_forward_hook(lambda _, x, tokens, normed=normed: normed.append(tokens))
        (features,) = vit(images(), NARROW)
        assert torch.equal(features, pool(normed[0]))


def test_backbone_without_a_subnet_runs_whole():
    vit = small_vit()
    (features,) = vit(images())
    assert features.shape == (2, 24)
    assert torch.equal(features, vit(images(), WIDE)[0])


@pytest.mark.parametrize('shape', [(2, 1, 10, 10), (2, 1, 8, 6), (2, 3, 8, 8), (1, 8, 8)])
def test_images_of_another_size_are_refused(shape):
    with pytest.raises(UserError, match=r'takes images of shape \(1, 8, 8\), got \(') as error:
        small_vit()(torch.zeros(shape))
    assert str(shape[1:]) in str(error.value)


def test_image_that_is_no_whole_number_of_patches_is_refused():
    with pytest.raises(UserError, match='img_size 9 is not a multiple of patch_size 2'):
        ElasticViT(WIDE, img_size=9, patch_size=2)


def test_unknown_pooling_is_refused():
    with pytest.raises(UserError, match="out_type must be .*, got 'mean'"):
        ElasticViT(WIDE, out_type='mean')


@pytest.mark.parametrize(
    ('mole', 'message'),
    [
        (
            dict(num_experts=4),
            r"mole must be a dict of \('num_experts', 'rank', .* first two always",
        ),
        (dict(num_experts=4, rank=0), 'mole.rank must be a positive integer, got 0'),
        (dict(num_experts=4.0, rank=1), 'mole.num_experts must be a positive integer, got 4.0'),
    ],
)
def test_bad_mole_is_refused(mole, message):
    with pytest.raises(UserError, match=message):
        ElasticViT(WIDE, mole=mole)


def rate(block) -> float:
    return getattr(block.drop_path, 'drop_prob', 0.0)


def test_drop_path_rates_follow_the_supernet_depth():
    vit = small_vit(drop_path_rate=0.3)
    assert [rate(block) for block in vit.blocks] == pytest.approx([0, 0.1, 0.2, 0.3])
    shallow = [rate(block) for block, _ in vit.active_blocks(NARROW)]
    assert shallow == pytest.approx([0, 0.1])


def test_drop_path_acts_in_training_alone():
    vit = small_vit(drop_path_rate=0.9)
    assert not torch.equal(vit.train()(images())[0], vit(images())[0])
    assert torch.equal(vit.eval()(images())[0], vit(images())[0])


def test_every_subnet_of_a_space_runs():
    vit = ElasticViT(SPACE.largest(), img_size=8, patch_size=2, in_channels=1, head_dim=8)
    for subnet in every(SPACE):
        assert vit(images(), subnet)[0].shape == (2, subnet.embed_dim)
