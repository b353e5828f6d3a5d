"""Order of a supernet's units: scores against plain loops, slices against timm, and the tool."""

import json
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import call_tool
from mmengine.config import Config
from mmpretrain.structures import DataSample
from PIL import Image
from timm.layers import QuickGELU
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from tiny import CLASSES, randomize, tiny_model
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tas_lora import Subnet, UserError, apis, count_flops, count_params, load_supernet
from tas_lora.costs import timing
from tas_lora.costs.multiples import fast_multiple
from tas_lora.ordering import (
    ActivationScore,
    ChannelScore,
    OutputScore,
    Probe,
    TaylorScore,
    apply_order,
    measure_dimensions,
    propose_space,
    rank_blocks,
    smaller_choices,
)
from tas_lora.ordering.damage import shrunk
from tas_lora.ordering.outputs import damage_of, outputs
from tas_lora.ordering.space import sizes_of
from tas_lora.registry import TASK_UTILS
from tas_lora.structures import ratio_of

SCORES = [TaylorScore, OutputScore, ActivationScore]
HIDDEN = (40, 24, 33)
ARCH = Subnet(24, (3, 2, 4), tuple(ratio_of(hidden, 24) for hidden in HIDDEN))
SPEC = dict(img_size=8, patch_size=2, in_channels=1, head_dim=8)
PLAIN = dict(qkv_bias_by_part=True, norm_eps=1e-6)
DINO = dict(num_prefix_tokens=3, prefix_positions=False, layer_scale=0.5) | PLAIN
STYLES = dict(  # fields of the backbone
    autoformer=dict(max_relative_position=2),
    deit=dict(max_relative_position=None, style=PLAIN, out_type='cls_token'),
    dino=dict(max_relative_position=None, style=DINO, out_type='cls_token'),
    both=dict(max_relative_position=None, style=DINO, out_type='cls_avg'),
    clip=dict(
        max_relative_position=None,
        style=dict(pre_norm=True, act='quick_gelu') | PLAIN,
        out_type='avg_featmap',
    ),
    pooled=dict(
        max_relative_position=None,
        style=dict(num_prefix_tokens=0, final_norm='pooled') | PLAIN,
        out_type='avg_featmap',
    ),
)


def network(
    style: str = 'deit', arch: Subnet = ARCH, head: bool = True, mapped: bool = False, **fields
):
    """A supernet with random weights in one of the styles."""
    backbone = dict(type='tas_lora.ElasticViT', arch=arch.to_dict(), **SPEC) | STYLES[style]
    options = dict(backbone=backbone | fields, feature_map=mapped)
    if not head:
        options['head'] = None
    elif style == 'both':
        options['head'] = dict(type='tas_lora.ElasticClsHead', num_classes=CLASSES)
    model = tiny_model(False, arch, **options)
    torch.manual_seed(1)
    return randomize(model, 0.3)


def batches(count: int = 2, size: int = 4, side: int = 8) -> list[dict]:
    """As a data_preprocessor gives them."""
    rng = torch.Generator().manual_seed(2)
    found = []
    for _ in range(count):
        labels = torch.randint(CLASSES, (size,), generator=rng).tolist()
        samples = [DataSample().set_gt_label(label) for label in labels]
        images = torch.randn(size, 1, side, side, generator=rng)
        found.append(dict(inputs=images, data_samples=samples))
    return found


def drawn_importance(arch: Subnet = ARCH) -> dict:
    rng = torch.Generator().manual_seed(3)
    hidden = [torch.rand(n, generator=rng) for n in arch.hidden_dims]
    heads = [torch.arange(float(n)) for n in arch.num_heads]  # no block keeps its order
    return dict(neurons=hidden, heads=heads, channels=[torch.rand(arch.embed_dim, generator=rng)])


@pytest.mark.parametrize('style', STYLES)
def test_the_order_changes_nothing_at_full_size(style):
    model, data = network(style), batches()
    before = outputs(model, ARCH, data)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    orders = apply_order(model, drawn_importance())
    after = outputs(model, ARCH, data)
    assert (after - before).abs().max() < 1e-5 * before.abs().max()
    for name, value in model.state_dict().items():
        tables = 'rel_pos' in name  # heads share them
        assert torch.equal(value, weights[name]) == (tables or name == 'head.fc.bias'), name
    assert orders['channels'][0].sort().values.tolist() == list(range(24))


@pytest.mark.parametrize('style', ['deit', 'both'])
def test_features_without_a_head_change_places_only(style):
    model, data = network(style, head=False), batches()
    before = outputs(model, ARCH, data).unflatten(1, (-1, 24))
    order = apply_order(model, drawn_importance())['channels'][0]
    after = outputs(model, ARCH, data).unflatten(1, (-1, 24))
    assert (after - before[..., order]).abs().max() < 1e-5 * before.abs().max()
    assert order.tolist() != list(range(24))


def test_the_map_of_features_follows():
    model, data = network('both', mapped=True), batches()
    randomize(model.feature_map)
    with torch.no_grad():
        before = model(data[0]['inputs'], mode='distill')[1]
        order = apply_order(model, drawn_importance())['channels'][0]
        after = model(data[0]['inputs'], mode='distill')[1]
    before = before.unflatten(1, (2, 24))[..., order].flatten(1)
    assert (after - before).abs().max() < 1e-5 * before.abs().max()


def test_the_best_come_first():
    model, importance = network(), drawn_importance()
    fc1 = model.backbone.blocks[1].fc1.weight.clone()
    norm = model.backbone.norm.weight.clone()
    apply_order(model, importance)
    for j, best in enumerate(np.argsort(-importance['neurons'][1].numpy())):
        columns = np.argsort(-importance['channels'][0].numpy())
        assert torch.equal(model.backbone.blocks[1].fc1.weight[j], fc1[best][columns])
    assert torch.equal(model.backbone.norm.weight, norm[columns])


SMALL = Subnet(4, (2, 1), (0.75, 1.25))


def small_network(style: str):
    """Of some hundred weights, in float64."""
    own = dict(head_dim=2, img_size=4, patch_size=2)
    return network(style, SMALL, **own).double()


def differences(model, value, step: float = 1e-5) -> dict[str, np.ndarray]:
    """Derivative of ``value`` by each weight, in the weight's shape and then that of the value."""
    found = {}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            flat, rows = weight.view(-1), []
            for i in range(len(flat)):
                kept = flat[i].item()
                flat[i] = kept + step
                above = value()
                flat[i] = kept - step
                rows.append((above - value()) / (2 * step))
                flat[i] = kept
            found[name] = np.array(rows).reshape(*weight.shape, *np.shape(rows[0]))
    return found


def entries_of(style: str) -> dict[tuple, list[tuple[str, tuple]]]:
    """Names and indices of the weights of each unit, written out: (kind, block, unit) is the key.

    Of :func:`small_network`: width 4, heads 2 wide.
    """
    units = {}

    def add(kind, block, unit, name, *indices):
        name = name if name.startswith('head') else f'backbone.{name}'
        units.setdefault((kind, block, unit), []).extend((name, i) for i in product(*indices))

    for b, (heads, hidden) in enumerate(zip(SMALL.num_heads, SMALL.hidden_dims, strict=True)):
        inner = 2 * heads
        for n in range(hidden):
            add('neurons', b, n, f'blocks.{b}.fc1.weight', [n], range(4))
            add('neurons', b, n, f'blocks.{b}.fc1.bias', [n])
            add('neurons', b, n, f'blocks.{b}.fc2.weight', range(4), [n])
        for h in range(heads):
            rows = [2 * h, 2 * h + 1]
            add('heads', b, h, f'blocks.{b}.attn.qkv.weight', range(3), rows, range(4))
            biases = [part * inner + row for part in range(3) for row in rows]
            add('heads', b, h, f'blocks.{b}.attn.qkv.bias', biases)
            add('heads', b, h, f'blocks.{b}.attn.proj.weight', range(4), rows)
        for c in range(4):
            for norm in ('attn_norm', 'ffn_norm'):
                add('channels', 0, c, f'blocks.{b}.{norm}.weight', [c])
                add('channels', 0, c, f'blocks.{b}.{norm}.bias', [c])
            add('channels', 0, c, f'blocks.{b}.attn.qkv.weight', range(3), range(inner), [c])
            add('channels', 0, c, f'blocks.{b}.attn.proj.weight', [c], range(inner))
            add('channels', 0, c, f'blocks.{b}.attn.proj.bias', [c])
            add('channels', 0, c, f'blocks.{b}.fc1.weight', range(hidden), [c])
            add('channels', 0, c, f'blocks.{b}.fc2.weight', [c], range(hidden))
            add('channels', 0, c, f'blocks.{b}.fc2.bias', [c])
            if style == 'both':
                add('channels', 0, c, f'blocks.{b}.attn_scale', [c])
                add('channels', 0, c, f'blocks.{b}.mlp_scale', [c])
    tokens, rows = (3, 4) if style == 'both' else (1, 5)
    columns = 2 if style == 'both' else 1
    for c in range(4):
        add('channels', 0, c, 'patch_embed.weight', [c], [0], range(2), range(2))
        add('channels', 0, c, 'patch_embed.bias', [c])
        add('channels', 0, c, 'cls_token', [0], range(tokens), [c])
        add('channels', 0, c, 'pos_embed', [0], range(rows), [c])
        add('channels', 0, c, 'norm.weight', [c])
        add('channels', 0, c, 'norm.bias', [c])
        add('channels', 0, c, 'head.fc.weight', range(CLASSES), [c + 4 * i for i in range(columns)])
    return units


def assert_scores(importance: dict, expected: dict, **tolerance) -> None:
    assert sum(len(x) for group in importance.values() for x in group) == len(expected)
    for (kind, block, unit), value in expected.items():
        assert float(importance[kind][block][unit]) == pytest.approx(value, **tolerance), (
            kind,
            unit,
        )


def double(data: list[dict]) -> list[dict]:
    return [dict(b, inputs=b['inputs'].double()) for b in data]


@pytest.mark.parametrize('style', ['deit', 'both'])
def test_taylor_is_what_plain_loops_give(style):
    model, data = small_network(style), double(batches(2, 3, 4))
    weights = {name: value.detach().clone() for name, value in model.named_parameters()}

    def loss() -> float:
        return sum(float(model(**batch, mode='loss')['loss']) for batch in data)

    slopes, expected = differences(model, loss), {}
    for unit, entries in entries_of(style).items():
        expected[unit] = sum(abs(float(weights[n][i]) * slopes[n][i]) for n, i in entries)
    assert_scores(TaylorScore()(model, data), expected, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize('style', ['deit', 'both'])
def test_the_output_score_is_the_squared_change_of_the_logits(style):
    model, data, probes = small_network(style), double(batches(1, 3, 4)), 600
    weights = {name: value.detach().clone() for name, value in model.named_parameters()}
    slopes = differences(model, lambda: model(data[0]['inputs']).flatten().numpy())
    expected = {}
    for unit, entries in entries_of(style).items():
        change = sum(float(weights[n][i]) * slopes[n][i] for n, i in entries)
        expected[unit] = float(change @ change)
    # The variance of a probe's square is at most twice the squared mean: 5 standard errors.
    error = 5 * (2 / probes) ** 0.5
    assert_scores(OutputScore(seed=4, probes=probes)(model, data), expected, rel=error, abs=1e-9)
    once, again, other = (OutputScore(seed)(model, data)['channels'][0] for seed in (5, 5, 6))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


class NarrowAttention(Attention):
    """Heads 8 wide, however many."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs | dict(attn_head_dim=8))


def timm_of(model, subnet: Subnet) -> VisionTransformer:
    """timm's network, filled from the first rows and columns of a supernet's tensors."""
    state, backbone = model.state_dict(), model.backbone
    style, width, size = backbone.style, subnet.embed_dim, 8
    norm = partial(nn.LayerNorm, eps=style.norm_eps)
    act = dict(gelu=nn.GELU, quick_gelu=QuickGELU)[style.act]
    options = dict(init_values=style.layer_scale, norm_layer=norm, act_layer=act)
    pooled, parts_of_head = style.final_norm == 'pooled', model.backbone.feature_parts
    net = VisionTransformer(
        img_size=8,
        patch_size=2,
        in_chans=1,
        num_classes=CLASSES,
        depth=subnet.depth,
        no_embed_class=not style.prefix_positions,
        reg_tokens=max(style.num_prefix_tokens - 1, 0),
        class_token=style.num_prefix_tokens > 0,
        global_pool='token' if model.backbone.out_type == 'cls_token' else 'avg',
        fc_norm=pooled,
        pre_norm=style.pre_norm,
        embed_dim=width,
        num_heads=1,
        **options,
    )
    filled = {
        'patch_embed.proj.weight': state['backbone.patch_embed.weight'][:width],
        'patch_embed.proj.bias': state['backbone.patch_embed.bias'][:width],
        'pos_embed': state['backbone.pos_embed'][..., :width],
        'head.weight': state['head.fc.weight']
        .unflatten(1, (parts_of_head, -1))[..., :width]
        .flatten(1),
        'head.bias': state['head.fc.bias'],
    }
    for ours, theirs in (('norm', 'fc_norm' if pooled else 'norm'), ('pre_norm', 'norm_pre')):
        if f'backbone.{ours}.weight' in state:
            for name in ('weight', 'bias'):
                filled[f'{theirs}.{name}'] = state[f'backbone.{ours}.{name}'][:width]
    if style.num_prefix_tokens:
        filled['cls_token'] = state['backbone.cls_token'][:, :1, :width]
    if style.num_prefix_tokens > 1:
        filled['reg_token'] = state['backbone.cls_token'][:, 1:, :width]
    blocks = []
    for j, i in enumerate(sorted(backbone.block_order[: subnet.depth])):
        heads, hidden = subnet.num_heads[j], subnet.hidden_dims[j]
        inner = heads * size
        blocks.append(
            Block(
                width,
                heads,
                ratio_of(hidden, width),
                qkv_bias=True,
                **options,
                attn_layer=NarrowAttention,
            )
        )
        own = {n.removeprefix(f'backbone.blocks.{i}.'): v for n, v in state.items()}
        bias = own['attn.qkv.bias'].chunk(3)
        parts = {
            'norm1.weight': own['attn_norm.weight'][:width],
            'norm1.bias': own['attn_norm.bias'][:width],
            'attn.qkv.weight': torch.cat([w[:inner, :width] for w in own['attn.qkv.weight']]),
            'attn.qkv.bias': torch.cat([b[:inner] for b in bias]),
            'attn.proj.weight': own['attn.proj.weight'][:width, :inner],
            'attn.proj.bias': own['attn.proj.bias'][:width],
            'norm2.weight': own['ffn_norm.weight'][:width],
            'norm2.bias': own['ffn_norm.bias'][:width],
            'mlp.fc1.weight': own['fc1.weight'][:hidden, :width],
            'mlp.fc1.bias': own['fc1.bias'][:hidden],
            'mlp.fc2.weight': own['fc2.weight'][:width, :hidden],
            'mlp.fc2.bias': own['fc2.bias'][:width],
        }
        if style.layer_scale is not None:
            parts['ls1.gamma'] = own['attn_scale'][:width]
            parts['ls2.gamma'] = own['mlp_scale'][:width]
        filled |= {f'blocks.{j}.{name}': value for name, value in parts.items()}
    net.blocks = nn.Sequential(*blocks)
    net.patch_embed.proj = nn.Conv2d(1, width, 2, 2)  # timm's has no bias if pre_norm
    if parts_of_head == 2:  # class token and mean of the patches, which timm does not join

        def pool(x, pool_type=None):
            return torch.cat([x[:, 0], x[:, style.num_prefix_tokens :].mean(1)], 1)

        net.pool, net.head = pool, nn.Linear(2 * width, CLASSES)
    net.load_state_dict(filled)
    return net.to(state['head.fc.weight'].dtype).eval()


@pytest.mark.parametrize('style', [name for name in STYLES if name != 'autoformer'])
def test_a_slice_after_ordering_is_a_network_of_timm(style):
    model, data = network(style).double(), double(batches())
    whole = timm_of(model, ARCH)
    apply_order(model, drawn_importance())
    model.backbone.block_order = (2, 0, 1)
    images = torch.cat([batch['inputs'] for batch in data])
    with torch.no_grad():
        original = whole(images)
    assert (logits(model, ARCH, images) - original).abs().max() < 1e-12 * original.abs().max()
    for subnet in (
        Subnet(16, (2, 3), (ratio_of(17, 16), 1.0)),  # blocks 0 and 2
        Subnet(24, (4,), (1.0,)),  # block 2 alone
        Subnet(8, (1, 2, 1), (3.0, 2.0, 1.0)),
    ):
        with torch.no_grad():
            expected = timm_of(model, subnet)(images)
        found = logits(model, subnet, images)
        assert (found - expected).abs().max() < 1e-12 * expected.abs().max()


@torch.no_grad()
def logits(model, subnet: Subnet, images: torch.Tensor) -> torch.Tensor:
    """In the model's precision."""
    model.set_subnet(subnet)
    return model(images, mode='tensor')


def test_the_order_helps():
    """Half of the neurons and heads do nothing, but come first until they are ordered."""
    model, data = network('deit', EQUAL), batches()
    with torch.no_grad():
        for block in model.backbone.blocks:
            block.fc2.weight[:, :48], block.attn.proj.weight[:, :16] = 0, 0
    choices = dict(neurons=[48], heads=[2])
    before = measure_dimensions(Probe(model, data), choices)
    apply_order(model, TaylorScore()(model, data))
    after = measure_dimensions(Probe(model, data), choices)
    for name in choices:
        assert before[name][1]['damage'] > 0.01
        assert after[name][1]['damage'] < 1e-6


def test_activations_are_those_inside_of_timm():
    model, data = network('dino'), batches()
    net, seen = timm_of(model, ARCH), {}

    def watch(name, module, is_input):
        def note(_, inputs, output):
            seen.setdefault(name, []).append((inputs[0] if is_input else output).numpy())

        module.register_forward_hook(note)

    for i, block in enumerate(net.blocks):
        watch(('fc2', i), block.mlp.fc2, True)
        watch(('proj', i), block.attn.proj, True)
        watch(('norm1', i), block.norm1, False)
        watch(('norm2', i), block.norm2, False)
    with torch.no_grad():
        for batch in data:
            net(batch['inputs'])
    seen = {name: np.concatenate(values) for name, values in seen.items()}  # (images, tokens, n)
    found = ActivationScore()(model, data)

    def root(x):  # of the squared means over tokens
        return np.sqrt((np.abs(x).mean(1) ** 2).sum(0))

    for i in range(3):
        np.testing.assert_allclose(found['neurons'][i], root(seen['fc2', i]), rtol=1e-4)
        heads = seen['proj', i].reshape(8, -1, ARCH.num_heads[i], 8)
        np.testing.assert_allclose(
            found['heads'][i], root(np.linalg.norm(heads, axis=3)), rtol=1e-4
        )
    norms = [root(seen[f'norm{k}', i]) for k in (1, 2) for i in range(3)]
    np.testing.assert_allclose(found['channels'][0], np.sum(norms, 0), rtol=1e-4)


@pytest.mark.parametrize('score', SCORES)
@pytest.mark.parametrize('style', ['autoformer', 'dino'])
def test_what_does_nothing_is_last(score, style):
    """Neurons and heads of which nothing comes; activations know only what goes into fc2."""
    model, data = network(style), batches()
    dead, heads, inner = [3, 17, 20], [1], 16
    block = model.backbone.blocks[1]  # 24 neurons, 2 heads
    with torch.no_grad():
        block.fc2.weight[:, dead] = 0
        rows = [8, 9, 10, 11, 12, 13, 14, 15]
        block.attn.proj.weight[:, rows] = 0
        if score is ActivationScore:
            block.fc1.weight[dead], block.fc1.bias[dead] = 0, 0
            block.attn.qkv.weight[2, rows] = 0
            block.attn.qkv.bias[[2 * inner + row for row in rows]] = 0
            if style == 'autoformer':  # positions have values of their own
                for table in block.attn.rel_pos_v.parameters():
                    table.zero_()
    importance = score()(model, data)
    assert set(importance['neurons'][1].argsort()[:3].tolist()) == set(dead)
    assert importance['neurons'][1].sort().values[3] > 0
    assert importance['heads'][1].argsort()[0].item() == heads[0]
    apply_order(model, importance)
    smaller = Subnet(24, (3, 1, 4), (ARCH.mlp_ratio[0], ratio_of(21, 24), ARCH.mlp_ratio[2]))
    if style == 'dino':  # the bias of fewer heads is another one in AutoFormer
        whole = outputs(model, ARCH, data)
        assert (outputs(model, smaller, data) - whole).abs().max() < 1e-5 * whole.abs().max()


@pytest.mark.parametrize('score', SCORES)
def test_scoring_leaves_the_model_as_it_was(score):
    model, data = network(), batches()
    model.train()
    model.backbone.blocks[0].eval()
    model.backbone.blocks[1].fc1.weight.requires_grad_(False)
    gradient = torch.ones_like(model.head.fc.bias)
    model.head.fc.bias.grad = gradient
    model.set_subnet(Subnet(16, (1, 1), (1.0, 1.0)))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    score()(model, data)
    assert not model.backbone.blocks[1].fc1.weight.requires_grad
    assert model.backbone.blocks[0].fc1.weight.requires_grad
    assert model.head.fc.bias.grad is gradient
    assert torch.equal(gradient, torch.ones(CLASSES))
    assert model.backbone.blocks[0].fc1.weight.grad is None
    assert model.training
    assert not model.backbone.blocks[0].training
    assert model.subnet.embed_dim == 16
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert not model.backbone.blocks[0].fc2._forward_hooks


def test_scores_do_not_need_a_head_or_labels_but_taylor():
    model = network('both', head=False)
    data = [dict(inputs=batch['inputs']) for batch in batches()]
    for score in (OutputScore, ActivationScore):
        importance = score()(model, data)
        assert all((x > 0).any() for group in importance.values() for x in group)
    with pytest.raises(UserError, match=r'TaylorScore needs labels.*tas_lora\.OutputScore'):
        TaylorScore()(network(), data)
    with pytest.raises(UserError, match='TaylorScore needs a head'):
        TaylorScore()(model, batches())


def test_models_that_cannot_be_ordered_are_refused():
    with pytest.raises(UserError, match='has experts.*order before they are added'):
        apply_order(tiny_model(), drawn_importance())
    with pytest.raises(UserError, match='has experts'):
        ActivationScore()(tiny_model(), batches())
    importance = drawn_importance()
    other = network(arch=Subnet(24, (3, 2), (1.0, 1.0)))
    with pytest.raises(UserError, match=r'importance\.neurons has shapes'):
        apply_order(other, importance)
    importance['channels'][0][3] = float('nan')
    with pytest.raises(UserError, match=r'importance\.channels is not finite'):
        apply_order(network(), importance)
    head = dict(type='mmpretrain.VisionTransformerClsHead', num_classes=5, hidden_dim=7)
    model = tiny_model(False, ARCH, head=head | dict(in_channels=24))
    with pytest.raises(UserError, match='VisionTransformerClsHead, whose channels are not known'):
        apply_order(model, drawn_importance())


def test_blocks_that_do_nothing_are_dropped_first():
    arch = Subnet(24, (2,) * 5, (1.0,) * 5)
    model, data, calls = network('dino', arch), batches(), []
    with torch.no_grad():
        for i in (1, 3):
            for scale in (model.backbone.blocks[i].attn_scale, model.backbone.blocks[i].mlp_scale):
                scale.zero_()
        model.backbone.blocks[1].mlp_scale.fill_(1e-3)
    order = rank_blocks(model, data, 3, lambda: calls.append(1))
    assert order == [0, 2, 4, 1, 3]
    assert len(calls) == 5 + 4
    assert model.backbone.block_order == (0, 1, 2, 3, 4)
    model.backbone.block_order = tuple(order)
    without = Subnet(24, (2,) * 4, (1.0,) * 4)
    assert torch.equal(outputs(model, without, data), outputs(model, arch, data))


def test_blocks_are_ranked_by_elimination():
    """Against trying all: each step drops the block whose absence changes the logits least."""
    arch = Subnet(24, (2,) * 4, (1.0,) * 4)
    model, data = network('deit', arch), batches()
    images = torch.cat([batch['inputs'] for batch in data])

    @torch.no_grad()
    def harm(kept):
        logs = []
        for blocks in (range(4), sorted(kept)):
            net = timm_of(model, arch)
            net.blocks = nn.Sequential(*(net.blocks[i] for i in blocks))
            logs.append(net(images).double().log_softmax(1))
        whole, cut = logs
        return float((whole.exp() * (whole - cut)).sum(1).mean())

    kept, dropped = {0, 1, 2, 3}, []
    while len(kept) > 1:
        worst = min(kept, key=lambda block: harm(kept - {block}))
        kept.remove(worst)
        dropped.insert(0, worst)
    assert rank_blocks(model, data) == [*kept, *dropped]


def test_damage_is_the_divergence_of_the_classes():
    model, rng = network(), np.random.default_rng(0)
    p, q = rng.normal(size=(2, 6, CLASSES))
    found = damage_of(model, torch.tensor(p), torch.tensor(q)).numpy()
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (p, q))
    np.testing.assert_allclose(found, (p * np.log(p / q)).sum(1), rtol=1e-6)
    head = dict(type='mmpretrain.MultiLabelLinearClsHead', num_classes=CLASSES)
    model = tiny_model(False, ARCH, head=head)
    p, q = rng.normal(size=(2, 6, CLASSES))
    found = damage_of(model, torch.tensor(p), torch.tensor(q)).numpy()
    p, q = (1 / (1 + np.exp(-x)) for x in (p, q))
    each = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    np.testing.assert_allclose(found, each.sum(1), rtol=1e-6)


def test_narrow_features_are_compared_with_the_whole():
    model, data = network('both', head=False), batches()
    wide, subnet = outputs(model, ARCH, data), shrunk(network(), 'width', 16)
    narrow = outputs(model, subnet, data)
    assert narrow.shape == wide.shape
    assert not narrow.view(-1, 2, 24)[..., 16:].any()
    with torch.no_grad():
        own = model.backbone(data[0]['inputs'], subnet)[-1]
    assert torch.equal(narrow.view(-1, 2, 24)[:4, :, :16].flatten(1), own)


EQUAL = Subnet(48, (4,) * 4, (2.0,) * 4)


def test_each_dimension_is_measured_alone():
    model, data = network('deit', EQUAL), batches()
    choices = smaller_choices(model, 8)
    assert choices == dict(
        neurons=[80, 72, 64, 48, 32, 24], heads=[3, 2], depth=[3, 2], width=[40, 32, 24]
    )
    assert smaller_choices(model, 16)['heads'] == [2]  # heads are 8 wide
    found = measure_dimensions(Probe(model, data), choices)
    labels = [int(sample.gt_label) for batch in data for sample in batch['data_samples']]
    for name, rows in found.items():
        assert [row['size'] for row in rows[1:]] == choices[name]
        assert rows[0]['damage'] == pytest.approx(0, abs=1e-6)
        assert rows[0]['agreement'] == 1
        for row in rows[1:]:
            subnet = shrunk(model, name, row['size'])
            net = timm_of(model, subnet)
            assert row['params'] == sum(p.numel() for p in net.parameters())
            with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
                net(data[0]['inputs'][:1])
            assert row['macs'] == counter.get_total_flops() / 2
            classes = net(torch.cat([b['inputs'] for b in data])).argmax(1)
            assert row['top1'] == pytest.approx(100 * np.mean(classes.numpy() == labels))
            assert row['damage'] > 0
    assert shrunk(model, 'width', 32).hidden_dims == (96,) * 4
    with pytest.raises(UserError, match='blocks of the supernet differ'):
        smaller_choices(network())


def curves(model, harm: dict[str, float]) -> dict:
    """Results as of a measurement: ``harm`` per share of the dimension taken away."""
    spec, arch, found = model.image_spec, model.backbone.arch, {}
    full = dict(neurons=arch.hidden_dims[0], heads=4, depth=4, width=48)
    for name, sizes in smaller_choices(model, 8).items():
        found[name] = []
        for size in (full[name], *sizes):
            subnet = shrunk(model, name, size)
            costs = dict(macs=count_flops(subnet, **spec), params=count_params(subnet, **spec))
            damage = harm[name] * (1 - size / full[name])
            found[name].append(dict(size=size, damage=damage) | costs)
    return found


def test_a_space_is_proposed_for_a_budget():
    model = network('deit', EQUAL)
    spec, harm = model.image_spec, dict(neurons=0.1, heads=1.0, depth=5.0, width=0.01)
    damage = curves(model, harm)
    easy = propose_space(EQUAL, spec, damage, dict(macs=0.98), 8)
    assert {name for name, _ in easy.added} == {'neurons'}  # cheapest that is allowed
    assert easy.space.largest() == EQUAL
    for limits in (dict(macs=0.6), dict(params=0.5), dict(macs=0.5, params=0.25)):
        proposal = propose_space(EQUAL, spec, damage, limits, 8)
        smallest = proposal.space.smallest()
        for name, count in (('macs', count_flops), ('params', count_params)):
            share = count(smallest, **spec) / count(EQUAL, **spec)
            assert proposal.shares[name] == pytest.approx(share)
            assert share <= 0.7 * limits.get(name, 2)
        assert proposal.space.largest() == EQUAL
        model.check_space(proposal.space, 'the space')
    assert proposal.space.embed_dim == (24, 32, 40, 48)[-len(proposal.space.embed_dim) :]
    others = [name for name, _ in proposal.added].index('width')
    assert {name for name, _ in proposal.added[:others]} == {'neurons', 'heads', 'depth'}
    for width, ratio in product(proposal.space.embed_dim, proposal.space.mlp_ratio):
        assert int(width * ratio) % 8 == 0
    for name, size in proposal.added:  # hidden sizes that all widths share, and no others
        assert size in sizes_of(proposal.space)[name]
    hidden = sizes_of(proposal.space)['neurons']
    assert {n for name, n in proposal.added if name == 'neurons'} == {*hidden[:-1]} & {
        row['size'] for row in damage['neurons']
    }
    only = propose_space(EQUAL, spec, curves(model, harm | dict(neurons=9.0)), dict(macs=0.98), 8)
    assert only.added[0][0] == 'heads'


def test_a_ruined_dimension_is_not_free():
    """Damage is bounded: from there on a dimension loses no more, and must not be taken whole."""
    model = network('deit', EQUAL)
    spec, damage = model.image_spec, curves(model, dict(neurons=4.0, heads=4.0, depth=0, width=9.0))
    for row in damage['depth'][1:]:
        row['damage'] = 2.5  # at once
    proposal = propose_space(EQUAL, spec, damage, dict(macs=0.8), 8)
    assert 'depth' not in dict(proposal.added)
    assert {'neurons', 'heads'} == set(dict(proposal.added))


@pytest.mark.parametrize(
    ('limits', 'message'),
    [
        (dict(macs=1.2), 'limit macs is 1.2, which is above the original'),
        (dict(macs=0.0), 'limit macs is 0; give a share'),
        (dict(macs=0.01), r'limit macs=0\.01 cannot be reached: the smallest subnet.*24 wide'),
        (dict(latency=0.5), 'limit latency is unknown'),
    ],
)
def test_budgets_that_make_no_sense_are_refused(limits, message):
    model = network('deit', EQUAL)
    damage = curves(model, dict.fromkeys(('neurons', 'heads', 'depth', 'width'), 1.0))
    with pytest.raises(UserError, match=message):
        propose_space(EQUAL, model.image_spec, damage, limits, 8)


@pytest.mark.parametrize(
    ('slow', 'multiple', 'speeds'),
    [
        (lambda width: 1, 8, [1, 1, 1, 1]),
        (lambda width: 2 if width % 32 else 1, 32, [0.5, 0.5, 1, 1]),
        (lambda width: 1.05 if width % 64 else 1, 8, [1 / 1.05] * 3 + [1]),
        (lambda width: 1 if width % 64 else 2, 8, [1, 1, 1, 1]),  # multiples of 64 are also of 8
        (lambda width: 2 if width % 16 == 0 and width % 32 else 1, 32, [0.5, 0.5, 1, 1]),
    ],
)
def test_a_multiple_is_as_fast_as_the_slowest_of_its_multiples(monkeypatch, slow, multiple, speeds):
    """By known seconds, on a machine whose speed drifts from round to round."""
    widths, calls, seen = [(384, 1536), (1536, 384)], iter(range(10**6)), set()

    def known(job, device):
        x, weight = job.args
        seen.add(tuple(weight.shape))
        drift = 1 + next(calls) // 8 % 5  # 4 multiples x 2 layers in a round
        return drift * weight.numel() * slow(weight.shape[0])

    monkeypatch.setattr(timing, 'stopwatch', known)
    found, rates = fast_multiple('cpu', widths, tokens=2, rounds=9)
    assert seen == {(n, 384) for n in (1528, 1520, 1504, 1472)} | {
        (n, 1536) for n in (376, 368, 352, 320)
    }
    assert found == multiple
    assert [rates[m]['median'] for m in (8, 16, 32, 64)] == pytest.approx(speeds)


CONFIG = """
space = dict(embed_dim=[32], depth=[4], num_heads=[4], mlp_ratio=[2.0])
classes = ['a', 'b', 'c']
model = dict(
    type='tas_lora.SupernetClassifier',
    backbone=dict(
        type='tas_lora.ElasticViT',
        arch=dict(embed_dim=32, num_heads=[4] * 4, mlp_ratio=[2.0] * 4),
        img_size=8, patch_size=4, head_dim=8, max_relative_position=None,
        style=dict(num_prefix_tokens=3, layer_scale=0.5, qkv_bias_by_part=True),
    ),
    head=dict(type='tas_lora.ElasticClsHead', num_classes=3),
)
data_preprocessor = dict(num_classes=3, mean=[127.0] * 3, std=[60.0] * 3, to_rgb=True)
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='CustomDataset', data_root='ROOT', data_prefix='train', pipeline=pipeline),
)
val_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='CustomDataset', data_root='ROOT', data_prefix='val', pipeline=pipeline),
)
val_evaluator = dict(type='Accuracy')
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3))
train_cfg = dict(type='tas_lora.SubnetSamplingTrainLoop', max_epochs=1, space=space)
val_cfg = dict(type='tas_lora.SubnetValLoop', subnets=dict(largest='largest'))  # no space yet
"""


@pytest.fixture(scope='module')
def folder(shared):
    """A config with its images and weights."""
    rng = np.random.default_rng(0)
    for split, name, i in product(('train', 'val'), 'abc', range(4)):
        path = shared / 'images' / split / name / f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    (shared / 'config.py').write_text(CONFIG.replace('ROOT', str(shared / 'images')))
    torch.manual_seed(0)
    model = randomize(load_supernet(shared / 'config.py'), 0.3)
    torch.save(dict(state_dict=model.state_dict()), shared / 'start.pth')
    return shared


def order(folder, out, *options) -> int:
    arguments = ('--batches', 3, '--multiple', 8, '--out', out, *options)
    return call_tool('order.py', folder / 'config.py', folder / 'start.pth', *arguments)


def test_the_tool_from_end_to_end(folder, tmp_path, capsys):
    out = tmp_path / 'out'
    assert order(folder, out, '--limit', 'macs=0.6', '--device', 'cpu') == 0
    printed = capsys.readouterr().out
    assert 'Each dimension alone' in printed
    names = ['damage.json', 'damage.png', 'ordered.pth', 'ordered.py', 'space.json']
    assert sorted(path.name for path in out.iterdir()) == names
    record = json.loads((out / 'damage.json').read_text())
    assert record['difference'] < 1e-5
    assert record['made_by']['seed'] == 0
    assert {'command', 'versions', 'sha256'} <= set(record['made_by'])
    space = json.loads((out / 'space.json').read_text())
    assert space['smallest']['macs'] <= 0.42
    assert record['chance'] <= 1
    text = (out / 'ordered.py').read_text()
    assert str(out) not in text.split('\n', 2)[2]
    assert 'config.py' not in text.split('\n', 2)[2]
    out = out.rename(tmp_path / 'moved')
    cfg = apis.load_config(out / 'ordered.py')
    assert cfg.train_cfg.space == cfg.val_cfg.space == space['space']
    assert cfg.model.backbone.block_order == record['block_order']
    ordered = load_supernet(cfg, cfg.load_from)
    start = load_supernet(folder / 'config.py', folder / 'start.pth')
    images = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        before, after = start(images), ordered(images)
    assert (after - before).abs().max() < 1e-5 * before.abs().max()
    weights = start.backbone.norm.weight[record['channels']]
    assert torch.equal(ordered.backbone.norm.weight, weights)
    assert call_tool('space_costs.py', out / 'ordered.py', '--no-timing', '--device', 'cpu') == 0
    assert f'{space["subnets"]:,} subnets' in capsys.readouterr().out


def test_the_tool_repeats_itself_and_keeps_options(folder, tmp_path):
    options = ('--score', 'tas_lora.OutputScore', '--cfg-options', 'train_cfg.max_epochs=7')
    found = []
    for name in ('one', 'two'):
        assert order(folder, tmp_path / name, *options) == 0
        found.append(torch.load(tmp_path / name / 'ordered.pth', weights_only=True)['state_dict'])
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
    cfg = Config.fromfile(tmp_path / 'two' / 'ordered.py')
    assert cfg.train_cfg.max_epochs == 7
    space = json.loads((tmp_path / 'two/space.json').read_text())['space']
    assert cfg.train_cfg.space == cfg.space == space
    assert cfg.load_from == str(tmp_path / 'two' / 'ordered.pth')


@TASK_UTILS.register_module()
class LastFirst(ChannelScore):
    """A user's score: by place, the last is the best."""

    def score(self, model, batches, table):
        """Ascending numbers."""
        return {
            kind: [torch.arange(float(n)) for n in sizes]
            for kind, sizes in dict(neurons=[64] * 4, heads=[4] * 4, channels=[32]).items()
        }


def test_a_score_of_ones_own(folder, tmp_path):
    assert order(folder, tmp_path / 'out', '--score', 'LastFirst') == 0
    record = json.loads((tmp_path / 'out' / 'damage.json').read_text())
    assert record['channels'] == list(range(31, -1, -1))


SORTED = ['--cfg-options', 'train_dataloader.sampler.shuffle=False']
ONE_CLASS = ['train_dataloader.dataset.indices=[0,1,2,3,0,1,2,3,0,1,2,3]']


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--batches', 9], '--batches is 9, but train_dataloader has 3 of 4 images'),
        (['--limit', 'macs=1.5'], 'limit macs is 1.5, which is above the original'),
        (['--limit', 'macs=0.05'], 'limit macs=0.05 cannot be reached'),
        (['--limit', 'macs'], "--limit takes COST=SHARE, such as macs=0.5, got 'macs'"),
        (
            ['--score', 'tas_lora.Nothing'],
            "choose from dict(type='tas_lora.ActivationScore'), ",
        ),
        (['--multiple', 'many'], "--multiple must be 'auto' or an integer"),
        (['--batches', 0], '--batches must be a positive integer'),
        (
            ['--batches', 1, '--cfg-options', 'train_dataloader.batch_size=2'],
            'for 3 classes, none of ',
        ),
        (
            ['--batches', 1, *SORTED],
            '4 images for 3 classes, none of b, c, too few for TaylorScore; give --batches 2, or',
        ),
        (['--batches', 3, *SORTED, *ONE_CLASS], 'none of b, c, too few for TaylorScore; use --sc'),
        (['--device', 'banana'], "--device cannot be 'banana': "),
        (['--limit', 'macs=0.5', 'macs=0.6'], '--limit macs is given twice'),
        (['--out', __file__], 'is a file; give a folder'),
        (['--out', f'{__file__}/below'], 'is a file; give a folder'),
        (['--cfg-options', 'val_dataloader=None'], 'has no val_dataloader'),
    ],
)
def test_mistakes_are_one_line(folder, tmp_path, capsys, options, message):
    assert order(folder, tmp_path / 'out', *options) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1]
    assert lines[-1].startswith('error: ')
    assert not (tmp_path / 'out').exists()


def test_what_is_read_is_not_replaced(folder, tmp_path, capsys):
    out = tmp_path / 'out'
    assert order(folder, out) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert call_tool('order.py', out / 'ordered.py', '--out', out, '--multiple', 8) == 2
    assert 'ordered.py is read, and --out would replace it' in capsys.readouterr().err
    arguments = folder / 'config.py', out / 'ordered.pth', '--out', tmp_path / 'more' / '..' / 'out'
    (tmp_path / 'more').mkdir()
    assert call_tool('order.py', *arguments) == 2
    assert 'ordered.pth is read, and --out would replace it' in capsys.readouterr().err
    assert before == {path.name: path.read_bytes() for path in out.iterdir()}
    again = out / 'ordered.py', '--out', tmp_path / 'two', '--batches', 3, '--multiple', 8
    assert call_tool('order.py', *again) == 0  # into another folder


def test_a_project_can_be_moved(folder, tmp_path, monkeypatch):
    project = tmp_path / 'project'
    project.mkdir()
    for name in ('config.py', 'start.pth'):
        (project / name).write_bytes((folder / name).read_bytes())
    monkeypatch.chdir(project)
    assert order(project, 'out') == 0
    monkeypatch.chdir(tmp_path)
    moved = project.rename(tmp_path / 'moved')
    (moved / 'config.py').unlink()
    cfg = apis.load_config(moved / 'out' / 'ordered.py')
    load_supernet(cfg, cfg.load_from)


def test_an_order_that_changes_the_network_is_not_written(folder, tmp_path, monkeypatch, capsys):
    """Couplings of the neurons that miss the rows of the second layer."""
    from tas_lora.ordering import couplings

    whole = couplings._neurons
    monkeypatch.setattr(couplings, '_neurons', lambda block: whole(block)[:2])
    assert order(folder, tmp_path / 'out') == 2
    assert 'ordering changed the outputs at full size by' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_a_parameter_of_no_unit_is_refused():
    model = network()
    model.backbone.blocks[1].gate = nn.Parameter(torch.ones(24))
    with pytest.raises(
        UserError, match=r'has backbone\.blocks\.1\.gate, whose units are not known'
    ):
        apply_order(model, drawn_importance())


def test_a_head_that_no_file_holds_is_not_asked(folder, tmp_path, capsys):
    state = torch.load(folder / 'start.pth')['state_dict']
    kept = {name: value for name, value in state.items() if name.startswith('backbone.')}
    torch.save(dict(state_dict=kept), tmp_path / 'backbone.pth')
    init = dict(type='Pretrained', checkpoint=str(tmp_path / 'backbone.pth'))
    text = (folder / 'config.py').read_text().replace('img_size=8', f'img_size=8, init_cfg={init}')
    (tmp_path / 'backbone.py').write_text(text)
    arguments = tmp_path / 'backbone.py', '--out', tmp_path / 'out', '--batches', 3, '--multiple', 8
    assert call_tool('order.py', *arguments) == 2
    assert 'TaylorScore needs a trained head' in capsys.readouterr().err
    assert call_tool('order.py', *arguments, '--score', 'tas_lora.OutputScore') == 0
    record = json.loads((tmp_path / 'out' / 'damage.json').read_text())
    assert set(record['after']['depth'][1]) == {'size', 'damage', 'macs', 'params'}
    cfg = apis.load_config(tmp_path / 'out' / 'ordered.py')
    model = load_supernet(cfg, cfg.load_from)  # the head is there, and follows the channels
    torch.manual_seed(0)
    whole = load_supernet(tmp_path / 'backbone.py')
    whole.backbone.init_weights()
    images = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        assert (model(images) - whole(images)).abs().max() < 1e-5 * whole(images).abs().max()


def test_auto_multiple_through_the_tool(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(timing, 'stopwatch', lambda job, _: 1.0 * job.args[1].numel())
    assert order(folder, tmp_path / 'out', '--multiple', 'auto') == 0
    space = json.loads((tmp_path / 'out' / 'space.json').read_text())
    assert space['multiple'] == 8
    assert set(space['rates']) == {'8', '16', '32', '64'}


def test_several_patch_sizes_are_refused():
    with pytest.raises(UserError, match=r'has patches of \[2, 4\] pixels'):
        smaller_choices(network('deit', EQUAL, patch_size=[2, 4]))


def test_the_tool_needs_weights_and_no_experts(folder, tmp_path, capsys):
    arguments = ('--out', tmp_path / 'out')
    assert call_tool('order.py', folder / 'config.py', *arguments) == 2
    assert 'names no weights' in capsys.readouterr().err
    assert call_tool('order.py', folder / 'config.py', tmp_path / 'x.pth', *arguments) == 2
    assert 'x.pth does not exist' in capsys.readouterr().err
    router = "router=dict(type='tas_lora.SingleExpertHead', space=space),"
    text = (folder / 'config.py').read_text().replace('    head=', f'    {router} head=', 1)
    text = text.replace('img_size=8', 'mole=dict(num_experts=1, rank=2), img_size=8', 1)
    (tmp_path / 'experts.py').write_text(text)
    start = folder / 'start.pth'
    assert call_tool('order.py', tmp_path / 'experts.py', start, *arguments) == 2
    assert 'order before they are added' in capsys.readouterr().err


def test_images_without_labels(folder, tmp_path, capsys):
    loaders = ('train_dataloader', 'val_dataloader')
    options = ['--cfg-options', *(f'{loader}.dataset.with_label=False' for loader in loaders)]
    assert order(folder, tmp_path / 'out', *options) == 2
    assert 'TaylorScore needs labels' in capsys.readouterr().err
    for score in ('OutputScore', 'ActivationScore'):
        assert order(folder, tmp_path / score, '--score', f'tas_lora.{score}', *options) == 0
        rows = json.loads((tmp_path / score / 'damage.json').read_text())['after']['neurons']
        assert set(rows[1]) == {'size', 'damage', 'agreement', 'macs', 'params'}


def test_features_alone(folder, tmp_path, capsys):
    text = (folder / 'config.py').read_text()
    text = text.replace("    head=dict(type='tas_lora.ElasticClsHead', num_classes=3),\n", '')
    text = text.replace("val_evaluator = dict(type='Accuracy')", 'val_evaluator = None')
    (tmp_path / 'features.py').write_text(text)
    state = torch.load(folder / 'start.pth')['state_dict']
    state = {name: value for name, value in state.items() if not name.startswith('head.')}
    torch.save(dict(state_dict=state), tmp_path / 'features.pth')
    arguments = [tmp_path / 'features.py', tmp_path / 'features.pth', '--out', tmp_path / 'out']
    arguments += ['--batches', 3, '--multiple', 8]
    assert call_tool('order.py', *arguments) == 2
    assert 'TaylorScore needs a head' in capsys.readouterr().err
    assert call_tool('order.py', *arguments, '--score', 'tas_lora.OutputScore') == 0
    record = json.loads((tmp_path / 'out' / 'damage.json').read_text())
    assert record['difference'] < 1e-5
    assert set(record['after']['depth'][1]) == {'size', 'damage', 'macs', 'params'}
    capsys.readouterr()
    assert call_tool('space_costs.py', tmp_path / 'out' / 'ordered.py', '--device', 'cpu') == 0
    assert 'without a head is counted, not timed' in capsys.readouterr().out


def test_nothing_half_written_is_left(folder, tmp_path, monkeypatch):
    """Stopped between two files: the folder has none that a reader would take for a whole one."""
    real, names = Path.open, []

    def broken(path, *arguments, **options):
        if path.parent == tmp_path / 'out':
            names.append(path.name)
            if len(names) == 3:
                raise KeyboardInterrupt
        return real(path, *arguments, **options)

    monkeypatch.setattr(Path, 'open', broken)
    assert order(folder, tmp_path / 'out') == 75
    assert len(names) == 3
    assert list((tmp_path / 'out').iterdir()) == []
