"""Adapters in the vision transformers of each library, against the library's own modules."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from mmpretrain.models import BEiTViT
from nas_lora.baselines.adapters import BottleneckAdapter
from nas_lora.baselines.conv_lora import ConvLoRALinear
from nas_lora.baselines.prompts import PromptedTokens
from nas_lora.cells.linear import NASLoRALinear
from nas_lora.vits.adapt import AdaptedModel, adapt
from nas_lora.vits.subnets import cut_out
from nas_lora.vits.vits import vit_of
from timm.models.vision_transformer import ParallelScalingBlock
from tiny import tiny_model
from tiny_encoder import tiny_encoder, wake
from tiny_vits import (
    DEPTH,
    EXTRA,
    GRIDS,
    SEPARATE,
    WIDTH,
    features,
    images,
    plain_update,
    small_timm,
    vit,
)
from torch import nn

from tas_lora.errors import UserError

NAS = dict(
    type='nas_lora.NASLoRALinear',
    ratio=2 / 3,
    operations=['skip_connect', 'max_pool_3x3', 'sep_conv_3x3'],
)
LINEAR = ('qkv', 'proj', 'mlp')
SEQUENCES = [name for name in EXTRA if name not in ('sam', 'subnet')]  # no relative positions


def adapted(name: str, adapter=NAS, targets='qkv', **options) -> nn.Module:
    model = vit(name)
    torch.manual_seed(2)
    adapt(model, dict(type=f'nas_lora.{adapter}') if isinstance(adapter, str) else adapter,
          targets, **options)  # fmt: skip
    model.double()
    model.eval()
    return model


def inputs_of(model: nn.Module, layer: nn.Module, run) -> torch.Tensor:
    seen = []
    handle = layer.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    run(model)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize('name', EXTRA)
@torch.no_grad()
def test_at_the_start_the_output_is_the_library_s_own(name):
    x = images(name)
    expected = features(name, vit(name), x)
    for adapter, targets in (
        (NAS, LINEAR),
        ('LoRALinear', LINEAR),
        ('ConvLoRALinear', LINEAR),
        ('BottleneckAdapter', ('attention', 'ffn')),
    ):
        model = adapted(name, adapter, targets)
        assert torch.equal(features(name, model, x), expected)


@pytest.mark.parametrize('name', EXTRA)
@torch.no_grad()
def test_an_awake_cell_in_each_layer_is_its_formula_on_the_library_s_layers(name):
    model, plain, x = adapted(name, NAS, LINEAR), vit(name), images(name)
    wake(model)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, NASLoRALinear)}
    depth = len(vit_of(plain).blocks)
    assert len(layers) == depth * (6 if name in SEPARATE else 4)
    for place, layer in layers.items():

        def added(module, args, y, layer=layer):
            return y + plain_update(layer, args[0], EXTRA[name], GRIDS[name])

        plain.get_submodule(place).register_forward_hook(added)
    y, start = features(name, model, x), features(name, vit(name), x)
    assert torch.allclose(y, features(name, plain, x), rtol=0, atol=1e-9)
    assert not torch.allclose(y, start, rtol=0, atol=1e-3)


@pytest.mark.parametrize('name', [name for name in EXTRA if EXTRA[name]])
@torch.no_grad()
def test_extra_tokens_do_not_mix_with_the_map(name):
    model = adapted(name)
    wake(model)
    layer = next(m for m in model.modules() if isinstance(m, NASLoRALinear))
    tokens = inputs_of(model, layer, lambda m: features(name, m, images(name)))
    extra, (height, width) = EXTRA[name], GRIDS[name]
    assert tokens.shape[1] == extra + height * width
    y = layer(tokens)
    for i in range(extra + 1):  # an extra token, or the first patch
        moved = tokens.clone()
        moved[:, i] += 1
        changed = (layer(moved) - y).abs().amax(dim=(0, 2)) > 0
        reached = set(changed.nonzero().flatten().tolist())
        assert reached == {i} if i < extra else {i} < reached <= set(range(extra, len(changed)))


@torch.no_grad()
def test_separate_q_k_v_are_a_fused_layer_with_the_same_weights():
    fused, separate = adapted('timm'), adapted('vit')
    wake(fused)
    found = vit_of(vit('vit'))
    for block, theirs in zip(found.blocks, fused.blocks, strict=True):
        three = [separate.get_submodule(name) for name in found.names('qkv', block)]
        for i, (part, layer) in enumerate(zip('qkv', three, strict=True)):
            rows = slice(WIDTH * i, WIDTH * (i + 1))
            layer.base.weight.copy_(theirs.attn.qkv.base.weight[rows])
            layer.base.bias.copy_(theirs.attn.qkv.base.bias[rows])
            assert list(layer.branches) == [part]
            layer.branches[part].load_state_dict(theirs.attn.qkv.branches[part].state_dict())
        [proj] = found.names('proj', block)
        separate.get_submodule(proj).load_state_dict(theirs.attn.proj.state_dict())
        x = torch.randn(2, 10, WIDTH, dtype=torch.float64)
        y = separate.get_submodule(block).attention(x)[0]
        assert torch.allclose(y, theirs.attn(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize('name', ['timm', 'mmpretrain', 'vit', 'clip', 'plain'])
@torch.no_grad()
def test_an_awake_bottleneck_is_its_formula_behind_attention_and_mlp(name):
    model = adapted(name, 'BottleneckAdapter', ('attention', 'ffn'))
    plain, x = vit(name), images(name)
    adapters = {n: m for n, m in model.named_modules() if isinstance(m, BottleneckAdapter)}
    assert len(adapters) == 2 * DEPTH
    for place, adapter in adapters.items():
        nn.init.normal_(adapter.up.weight)

        def behind(_, args, y, adapter=adapter):
            first = y[0] if isinstance(y, tuple) else y
            hidden = F.gelu(first @ adapter.down.weight.T + adapter.down.bias)
            first = first + hidden @ adapter.up.weight.T
            return (first, *y[1:]) if isinstance(y, tuple) else first

        plain.get_submodule(place).register_forward_hook(behind)
    y = features(name, model, x)
    assert torch.allclose(y, features(name, plain, x), rtol=0, atol=1e-10)
    assert not torch.allclose(y, features(name, vit(name), x), rtol=0, atol=1e-3)


@pytest.mark.parametrize('name', ['timm_registers', 'mmpretrain', 'dinov2', 'clip', 'plain'])
def test_only_the_wanted_parameters_train(name):
    for adapter, targets, kind in (
        (NAS, 'qkv', r'\.branches\.'),
        ('LoRALinear', 'mlp', r'\.lora_'),
        ('ConvLoRALinear', 'proj', r'\.(down|up|gate|experts)\.'),
        ('BottleneckAdapter', ('attention', 'ffn'), r'\.(down|up)\.'),
        ('PromptedTokens', 'block', r'\.prompts$'),
    ):
        model = adapted(name, adapter, targets, layers='last_half')
        model.train()
        features(name, model, images(name)).square().sum().backward()
        blocks = list(vit_of(vit(name)).blocks)[DEPTH // 2 :]
        for key, value in model.named_parameters():
            wanted = bool(re.search(kind, key)) and any(key.startswith(b + '.') for b in blocks)
            assert value.requires_grad == wanted
            assert wanted or value.grad is None
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize('name', SEQUENCES)
@torch.no_grad()
def test_prompts_are_tokens_that_each_block_gets_and_loses(name):
    model, plain, x = adapted(name, 'PromptedTokens', 'block'), vit(name), images(name)
    blocks = vit_of(plain).blocks
    for place, block in blocks.items():
        prompts = model.get_submodule(place).prompts
        assert prompts.shape == (5, WIDTH)

        def more(_, args, prompts=prompts):
            return torch.cat([args[0], prompts.expand(len(args[0]), -1, -1)], dim=1), *args[1:]

        block.register_forward_pre_hook(more)
        block.register_forward_hook(
            lambda _, args, y: (y[0][:, :-5],) if isinstance(y, tuple) else y[:, :-5]
        )
    y = features(name, model, x)
    assert torch.allclose(y, features(name, plain, x), rtol=0, atol=1e-12)
    assert not torch.allclose(y, features(name, vit(name), x), rtol=0, atol=1e-6)


@torch.no_grad()
def test_prompts_are_the_formula_of_deep_prompt_tuning():
    block = adapted('timm', 'PromptedTokens', 'block').blocks[0]
    base, x = block.base, torch.randn(2, 10, WIDTH, dtype=torch.float64)

    def norm(layer, z):
        centred = z - z.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * layer.weight + (
            layer.bias
        )

    z = torch.cat([x, block.prompts.expand(2, -1, -1)], dim=1)
    qkv = norm(base.norm1, z) @ base.attn.qkv.weight.T + base.attn.qkv.bias
    heads = []
    for h in range(2):
        q, k, v = (qkv[..., WIDTH * i + 12 * h : WIDTH * i + 12 * h + 12] for i in range(3))
        heads.append((q @ k.mT / 12**0.5).softmax(-1) @ v)
    y = torch.cat(heads, dim=-1) @ base.attn.proj.weight.T + base.attn.proj.bias
    z = z + base.ls1.gamma * y
    y = F.gelu(norm(base.norm2, z) @ base.mlp.fc1.weight.T + base.mlp.fc1.bias)
    z = z + base.ls2.gamma * (y @ base.mlp.fc2.weight.T + base.mlp.fc2.bias)
    assert torch.allclose(block(x), z[:, :10], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ('adapter', 'targets'),
    [
        ('NASLoRALinear', LINEAR),
        ('LoRALinear', LINEAR),
        ('ConvLoRALinear', LINEAR),
        ('BottleneckAdapter', ('attention', 'ffn')),
        ('PromptedTokens', 'block'),
        ('PromptedAttention', 'attention'),
    ],
)
def test_adapters_are_where_the_model_is_and_of_its_type(adapter, targets):
    like = dict(device='meta', dtype=torch.bfloat16)
    model = tiny_encoder() if adapter == 'PromptedAttention' else small_timm()
    model.to(**like)
    adapt(model, dict(type=f'nas_lora.{adapter}'), targets)
    assert any(p.requires_grad for p in model.parameters())
    assert {(str(p.device), p.dtype) for p in model.parameters()} == {tuple(like.values())}


@torch.no_grad()
def test_a_block_may_return_a_tuple():  # as in transformers 4

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(WIDTH)

        def forward(self, x, mask=None, scale=1):
            return self.norm(x.sum(1, keepdim=True) - x) * scale, x.shape[1]

    x, block = torch.randn(2, 4, WIDTH), PromptedTokens(Block(), 3)
    expected = x.sum(1, keepdim=True) + block.prompts.sum(0) - x
    y, tokens = block(x, None, scale=2)
    assert tokens == 7
    assert torch.allclose(y, 2 * F.layer_norm(expected, (WIDTH,)), atol=1e-5)


@pytest.mark.parametrize('name', ['vit', 'dinov2', 'clip'])
@torch.no_grad()
def test_the_hidden_states_that_transformers_records_hold_no_prompts(name):
    model, x = adapted(name, 'PromptedTokens', 'block'), images(name)
    found = model(x, output_hidden_states=True).hidden_states
    plain = vit(name)(x, output_hidden_states=True).hidden_states
    assert [each.shape for each in found] == [each.shape for each in plain]
    assert torch.equal(found[0], plain[0])
    copied = copy.deepcopy(model)
    for block in vit_of(copied).blocks.values():
        nn.init.zeros_(block.prompts)
    changed = features(name, copied, x)
    assert not torch.equal(changed, features(name, model, x))  # its own prompts, not the copied


@torch.no_grad()
def test_conv_lora_keeps_extra_tokens_aside_and_balances_maps(monkeypatch):
    torch.manual_seed(0)
    layer = ConvLoRALinear(nn.Linear(12, 18), grid=(2, 3), extra_tokens=2).double()
    for value in (layer.up.weight, layer.gate.score):
        nn.init.normal_(value)
    layer.eval()
    x = torch.randn(8, 8, 12, dtype=torch.float64)
    y = layer(x)
    on_map = layer(x[:, 2:].reshape(8, 2, 3, 12)).flatten(1, 2)
    assert torch.allclose(y[:, 2:], on_map, rtol=0, atol=1e-12)
    for i in range(2):
        alone = layer(x[:, i].reshape(8, 1, 1, 12)).flatten(1, 2)
        assert torch.allclose(y[:, i : i + 1], alone, rtol=0, atol=1e-12)
    layer.train()
    monkeypatch.setattr(torch, 'randn_like', torch.zeros_like)
    losses = []
    for each in (x, x[:, 2:].reshape(8, 2, 3, 12)):
        layer(each)
        losses.append(layer.take_balance_loss().item())
    assert losses[0] == pytest.approx(losses[1]) != 0


@torch.no_grad()
def test_windows_of_tokens_are_maps_of_their_own():
    layer = NASLoRALinear(nn.Linear(12, 18), extra_tokens=1, ratio=2 / 3).double()
    wake(layer)
    windows = torch.randn(2 * 4, 1 + 9, 12, dtype=torch.float64)  # four windows an image
    y = layer(windows)
    assert torch.allclose(y[5], layer(windows[5:6])[0], rtol=0, atol=1e-12)
    expected = layer.base(windows) + plain_update(layer, windows, 1, (3, 3))
    assert torch.allclose(y, expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_subnet_is_cut_out_with_the_output_that_it_has_in_the_supernet():
    supernet = tiny_model()
    x = images('subnet').float()
    smaller = dict(embed_dim=16, num_heads=[1, 2], mlp_ratio=[1.0, 2.0])
    for subnet in (None, smaller):
        net = cut_out(supernet, subnet)
        if subnet is not None:
            supernet.set_subnet(subnet)
        assert torch.allclose(net(x), supernet(x), atol=1e-5)


@pytest.mark.parametrize(
    ('layers', 'blocks'),
    [('all', [0, 1, 2]), ('first_half', [0]), ('last_half', [1, 2]), ([2, 0], [0, 2])],
)
def test_layers_choose_blocks_and_what_a_config_says_wins(layers, blocks):
    names = adapt(small_timm(depth=3), NAS, ['proj', 'qkv'], layers)
    assert names == [f'blocks.{i}.attn.{each}' for i in blocks for each in ('qkv', 'proj')]
    model = vit('timm')
    adapt(model, NAS | dict(parts=('qk', 'v', 'rest'), extra_tokens=0), [r'.*\.qkv'])
    assert model.blocks[0].attn.qkv.parts == ('qk', 'v', 'rest')
    assert model.blocks[0].attn.qkv.token_maps.extra_tokens == 0


def test_a_vit_is_found_inside_a_model():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.data_preprocessor = None
            self.backbone = nn.Sequential(nn.Identity(), vit('dinov2_registers'))

        def init_weights(self):
            pass

    model = AdaptedModel(Model(), 'backbone', NAS, layers=[1])
    assert len(model.adapter_names) == 3
    for name, part in zip(sorted(model.adapter_names), 'kqv', strict=True):  # key, query, value
        assert re.match(rf'1\.encoder\.layer\.1\.attention\..*{part}', name)
        layer = model.model.backbone.get_submodule(name)
        assert (layer.parts, layer.token_maps.extra_tokens) == ((part,), 5)
    assert all('.branches.' in name for name in model.state_dict())


def beit() -> nn.Module:
    arch = dict(embed_dims=24, num_layers=1, num_heads=2, feedforward_channels=32)
    return BEiTViT(arch, 24, 8)


@pytest.mark.parametrize(
    ('model', 'options', 'message'),
    [
        ('timm', dict(layers='half'), "layers must be 'all', 'first_half', 'last_half' or a list"),
        ('timm', dict(layers=[2]), 'numbers from 0 to 1, got [2]'),
        ('timm', dict(layers=[True]), 'numbers from 0 to 1, got [True]'),
        ('timm', dict(layers=[]), 'numbers from 0 to 1, got []'),
        (
            'timm',
            dict(layers='last_half', targets=[r'.*qkv']),
            "layers: 'last_half' is for groups; name the blocks in targets as well",
        ),
        (
            'timm',
            dict(targets=('attention', 'qkv')),
            'targets: blocks.0.attn.qkv is inside blocks.0.attn; choose one of them',
        ),
        (
            lambda: nn.Sequential(nn.Linear(2, 2)),
            {},
            'the Sequential has 0 vision transformers of a known class (mmpretrain: VisionTra',
        ),
        (
            lambda: nn.ModuleList([vit('timm'), vit('clip')]),
            {},
            'the ModuleList has 2 vision transformers of a known class',
        ),
        (
            lambda: tiny_model(mole=False),
            {},
            'cut a subnet out of the ElasticViT by nas_lora.vits.subnets.cut_out',
        ),
        (
            lambda: small_timm(block_fn=ParallelScalingBlock),
            {},
            "targets: 'qkv': blocks.0 is a ParallelScalingBlock without attn.qkv; give the names",
        ),
        (
            beit,
            dict(targets=[r'.*qkv']),
            'targets: BEiTAttention reads the weight of layers.0.attn.qkv without calling it',
        ),
        (
            lambda: nn.TransformerEncoderLayer(24, 2),
            dict(targets=['linear1']),
            'targets: TransformerEncoderLayer reads the weight of linear1 without calling it',
        ),
        (
            tiny_encoder,
            dict(adapter=dict(type='nas_lora.PromptedTokens'), targets='block'),
            'in ViTSAM, use nas_lora.PromptedAttention',
        ),
        (
            'subnet',
            dict(adapter=dict(type='nas_lora.PromptedTokens'), targets='block'),
            'PromptedTokens cannot wrap a PlainBlock with relative positions',
        ),
        (
            'timm',
            dict(adapter=dict(type='nas_lora.PromptedTokens'), targets='attention'),
            'PromptedTokens wraps a whole block, got a Attention',
        ),
        (
            'timm',
            dict(adapter=dict(type='nas_lora.PromptedTokens', num_prompts=0), targets='block'),
            'num_prompts must be a positive integer, got 0',
        ),
    ],
)
def test_what_is_refused(model, options, message):
    model = vit(model) if isinstance(model, str) else model()
    options = dict(adapter=NAS, targets='qkv') | options
    with pytest.raises(UserError, match=re.escape(message)):
        adapt(model, **options)
