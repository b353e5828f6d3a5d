"""LoRA, Conv-LoRA, adapters and prompts against their formulas."""

import re

import pytest
import torch
import torch.nn.functional as F
from nas_lora.baselines.adapters import BottleneckAdapter, lora_linear
from nas_lora.baselines.conv_lora import ConvLoRALinear, chance_of_first
from nas_lora.baselines.prompts import PromptedAttention
from nas_lora.vits.adapt import adapt
from tiny_encoder import convolved, images, tiny_encoder
from torch import nn

from tas_lora.errors import UserError

TARGETS = dict(
    NASLoRALinear=r'layers\.\d+\.attn\.qkv',
    LoRALinear=r'layers\.\d+\.attn\.qkv',
    ConvLoRALinear=r'layers\.\d+\.attn\.qkv',
    BottleneckAdapter=r'layers\.\d+\.(attn|ffn\.layers)',
    PromptedAttention=r'layers\.\d+\.attn',
)
WIDTH, OUT, RANK = 64, 192, 3
CELL = 8 + RANK * ((9 + RANK) * 2 + (25 + RANK) * 2)
SIZES = dict(  # trained parameters of an adapted layer, with the defaults
    NASLoRALinear=3 * (CELL + RANK * WIDTH + RANK * OUT // 3),
    LoRALinear=RANK * (WIDTH + OUT),
    ConvLoRALinear=RANK * (WIDTH + OUT) + 8 * (9 * RANK * RANK + RANK) + 2 * 8 * RANK,
    BottleneckAdapter=2 * (2 * 8 * WIDTH + 8 + WIDTH),
    PromptedAttention=5 * WIDTH,
)


def adapted(name: str):
    torch.manual_seed(0)
    encoder = tiny_encoder()
    adapt(encoder, dict(type=f'nas_lora.{name}'), [TARGETS[name]])
    encoder.double()
    encoder.eval()
    return encoder


@pytest.mark.parametrize('name', sorted(TARGETS))
def test_each_trains_its_own_parameters_and_all_but_prompts_start_at_zero(name):
    encoder = adapted(name)
    torch.manual_seed(0)
    plain, x = tiny_encoder(), images()
    assert torch.equal(encoder(x)[0], plain(x)[0]) == (name != 'PromptedAttention')
    trained = {n: p for n, p in encoder.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) == 4 * SIZES[name]
    encoder.train()
    encoder(x)[0].square().sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trained.values())
    assert all(p.grad is None for n, p in encoder.named_parameters() if n not in trained)


@torch.no_grad()
def test_lora_is_its_formula():
    base = nn.Linear(12, 18)
    x = torch.randn(2, 4, 4, 12)
    for alpha, factor in ((None, 1.0), (6, 2.0)):
        layer = lora_linear(base, rank=3, alpha=alpha)
        nn.init.normal_(layer.lora_up.weight)
        change = layer.lora_up.weight @ layer.lora_down.weight
        assert torch.allclose(layer(x), base(x) + factor * x @ change.T, atol=1e-5)


@torch.no_grad()
def test_an_adapter_is_its_formula_behind_attention_and_behind_the_mlp():
    encoder = adapted('BottleneckAdapter')
    plain = tiny_encoder()
    layer = encoder.layers[1]  # global attention
    reference = plain.layers[1]
    reference.load_state_dict({k.replace('base.', ''): v for k, v in layer.state_dict().items()
                               if '.down.' not in k and '.up.' not in k})  # fmt: skip
    for module in (layer.attn, layer.ffn.layers):
        assert isinstance(module, BottleneckAdapter)
        nn.init.normal_(module.up.weight)
        nn.init.normal_(module.up.bias)

    def behind(module, y):
        hidden = F.gelu(y @ module.down.weight.T + module.down.bias)
        return y + hidden @ module.up.weight.T + module.up.bias

    x = torch.randn(2, 8, 8, WIDTH, dtype=torch.float64)
    y = x + behind(layer.attn, reference.attn(reference.ln1(x)))
    y = y + behind(layer.ffn.layers, reference.ffn.layers(reference.ln2(y)))
    assert torch.allclose(layer(x), y, rtol=0, atol=1e-10)


@torch.no_grad()
def test_prompts_are_more_keys_and_values():
    encoder = adapted('PromptedAttention')
    attention = encoder.layers[0].attn
    assert isinstance(attention, PromptedAttention)
    x = torch.randn(1, 4, 4, WIDTH, dtype=torch.float64)
    base = attention.base
    tokens = torch.cat([attention.prompts, x[0].flatten(0, 1)])
    qkv = (tokens @ base.qkv.weight.T + base.qkv.bias).reshape(-1, 3, 4, 16)
    expected = torch.zeros(16, 4, 16, dtype=torch.float64)
    for head in range(4):
        q, k, v = qkv[:, :, head].unbind(1)
        for token in range(16):
            score = q[5 + token] @ k.T / 4
            for other in range(16):
                rows, columns = token // 4 - other // 4, token % 4 - other % 4
                position = base.rel_pos_h[rows + 3] + base.rel_pos_w[columns + 3]
                score[5 + other] += q[5 + token] @ position
            expected[token, head] = score.exp() / score.exp().sum() @ v
    expected = expected.flatten(1) @ base.proj.weight.T + base.proj.bias
    assert torch.allclose(attention(x)[0].flatten(0, 1), expected, rtol=0, atol=1e-10)


@torch.no_grad()
def test_prompts_of_a_batch_of_windows_are_those_of_each():
    attention = adapted('PromptedAttention').layers[0].attn
    x = torch.randn(3, 4, 4, WIDTH, dtype=torch.float64)
    one_by_one = torch.cat([attention(window[None]) for window in x])
    assert torch.allclose(attention(x), one_by_one, rtol=0, atol=1e-12)


def conv_lora(**options) -> ConvLoRALinear:
    torch.manual_seed(0)
    layer = ConvLoRALinear(nn.Linear(12, 18), **options).double()
    nn.init.normal_(layer.up.weight)
    nn.init.normal_(layer.gate.score)
    layer.eval()
    return layer


@torch.no_grad()
def test_conv_lora_sends_each_map_through_its_best_expert():
    layer = conv_lora()
    x = torch.randn(24, 4, 5, 12, dtype=torch.float64)
    y = layer(x)
    used = set()
    for one, found in zip(x, y, strict=True):
        z = (one @ layer.down.weight.T).permute(2, 0, 1)[None]
        k = int((z.mean(dim=(2, 3)) @ layer.gate.score).argmax())
        used.add(k)
        expert = layer.experts[k]
        large = z if k == 0 else F.interpolate(z, size=(4 * k + 4, 5 * k + 5), mode='bicubic')
        large = F.gelu(convolved(large, expert.weight) + expert.bias[:, None, None])
        small = large if k == 0 else F.interpolate(large, size=(4, 5), mode='bicubic')
        update = (z + small)[0].permute(1, 2, 0) @ layer.up.weight.T
        assert torch.allclose(found, layer.base(one) + update, rtol=0, atol=1e-10)
    assert len(used) > 3


def test_the_chance_of_an_expert_is_that_of_drawing_its_noise_anew():
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(3, 4, generator=generator)
    std = torch.rand(3, 4, generator=generator) + 0.2
    noisy = clean + torch.randn(3, 4, generator=generator) * std
    for k in range(4):
        others = noisy[:, [i for i in range(4) if i != k]].amax(1)
        drawn = clean[:, k] + std[:, k] * torch.randn(40_000, 3, generator=generator)
        share = (drawn > others).float().mean(0)
        assert torch.allclose(chance_of_first(clean, noisy, std)[:, k], share, atol=0.01)


def test_the_balance_loss_falls_as_the_experts_are_used_alike():
    layer = conv_lora(balance=2.0)
    with torch.no_grad():
        layer.gate.score *= 4
    x = torch.randn(32, 2, 2, 12, dtype=torch.float64)
    layer(x)
    assert layer.take_balance_loss() is None  # not in evaluation
    layer.train()
    optimizer = torch.optim.Adam(layer.gate.parameters(), lr=0.1)
    losses = []
    for _ in range(60):
        layer(x)
        loss = layer.take_balance_loss()
        assert layer.take_balance_loss() is None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


def test_the_balance_loss_is_the_squared_coefficient_of_variation(monkeypatch):
    layer = conv_lora(num_experts=2, balance=3.0)
    layer.train()
    monkeypatch.setattr(torch, 'randn_like', torch.zeros_like)
    x = torch.randn(5, 2, 2, 12, dtype=torch.float64)
    layer(x)
    pooled = (x @ layer.down.weight.T).mean(dim=(1, 2))
    scores = pooled @ layer.gate.score
    std = torch.log(torch.tensor(2.0)) + 0.01  # softplus of no noise weights
    gap = (scores[:, 0] - scores[:, 1]) / std
    first = 0.5 * (1 + torch.erf(gap / 2**0.5))
    load = torch.stack([first.sum(), (1 - first).sum()])
    expected = 3 * ((load - load.mean()) ** 2).sum() / load.mean() ** 2  # of 2 - 1 degrees
    assert layer.take_balance_loss().item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(
    ('build', 'message'),
    [
        (lambda: lora_linear(nn.ReLU()), 'targets: LoRALinear adapts an nn.Linear, got a ReLU'),
        (lambda: lora_linear(nn.Linear(2, 2), 3), 'rank must be a positive integer, got 3; at mo'),
        (
            lambda: lora_linear(nn.Linear(4, 4), drop_rate=1),
            'drop_rate must be a number from 0 to below 1, got 1',
        ),
        (lambda: ConvLoRALinear(nn.Conv2d(2, 2, 1)), 'ConvLoRALinear adapts an nn.Linear, got a C'),
        (
            lambda: ConvLoRALinear(nn.Linear(4, 4), num_experts=0),
            'num_experts must be a positive integer, got 0',
        ),
        (lambda: BottleneckAdapter(nn.ReLU()), 'needs a module with a linear layer, got a ReLU'),
        (lambda: BottleneckAdapter(nn.Linear(4, 4), 0), 'width must be a positive integer, got 0'),
        (
            lambda: PromptedAttention(nn.Linear(4, 4)),
            "PromptedAttention adapts the attention of ViTSAM, got a Linear; use targets='att",
        ),
    ],
)
def test_what_they_refuse(build, message):
    with pytest.raises(UserError, match=re.escape(message)):
        build()
