"""Freezing, replacing, and what a checkpoint holds."""

import re

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.model import BaseModel
from mmengine.runner.checkpoint import load_state_dict
from nas_lora.cells.fold import fold
from nas_lora.cells.linear import NASLoRALinear
from nas_lora.merging.merge import merge_exact
from nas_lora.vits.adapt import AdaptedModel, adapt, auxiliary_losses
from tiny_encoder import images, tiny_encoder, wake
from torch import nn

from tas_lora.errors import UserError

NAS = dict(type='nas_lora.NASLoRALinear', ratio=2 / 3)
QKV = r'layers\.\d+\.attn\.qkv'
CONV = dict(type='nas_lora.ConvLoRALinear')


class Segmentor(BaseModel):
    """An encoder and the least of a decoder."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = tiny_encoder()
        self.decoder = nn.Conv2d(32, 1, 1).double()

    def init_weights(self):
        pass

    def forward(self, inputs, data_samples=None, mode='tensor'):
        logits = self.decoder(self.encoder(inputs)[0])
        return dict(loss=logits.square().mean()) if mode == 'loss' else logits


def made(**options) -> AdaptedModel:
    return AdaptedModel(Segmentor(), **dict(adapter=NAS) | options).double()


def trained(model: nn.Module) -> set[str]:
    return {name for name, value in model.named_parameters() if value.requires_grad}


def test_the_default_targets_are_every_qkv():
    encoder = tiny_encoder()
    names = adapt(encoder, NAS)
    assert names == [f'layers.{i}.attn.qkv' for i in range(4)]
    assert all(isinstance(layer.attn.qkv, NASLoRALinear) for layer in encoder.layers)
    assert all('.branches.' in name for name in trained(encoder))
    assert len(trained(encoder)) == 4 * 3 * (1 + 4 * 2 + 2)


def test_targets_choose_layers():
    assert adapt(tiny_encoder(), NAS, [r'layers\.[23]\.attn\.qkv']) == [
        'layers.2.attn.qkv',
        'layers.3.attn.qkv',
    ]
    names = adapt(tiny_encoder(), NAS | dict(parts=['out']), [QKV, r'layers\.0\..*proj'])
    assert names == ['layers.0.attn.qkv', 'layers.0.attn.proj', *(
        f'layers.{i}.attn.qkv' for i in (1, 2, 3)
    )]  # fmt: skip


@torch.no_grad()
def test_a_checkpoint_holds_adapters_and_decoder_only_and_reloads(tmp_path):
    model = made()
    plain = set(Segmentor().state_dict())
    wake(model)
    x = images()
    state = model.state_dict()
    assert {name for name in state if '.branches.' not in name} == {
        'model.decoder.weight',
        'model.decoder.bias',
    }
    assert not any(name.removeprefix('model.') in plain for name in state if 'branches' in name)
    torch.save(state, tmp_path / 'adapter.pth')
    other = made()
    assert not torch.equal(other(x), model(x))
    other.load_state_dict(torch.load(tmp_path / 'adapter.pth'))
    assert torch.equal(other(x), model(x))


@torch.no_grad()
def test_it_reloads_by_mmengine_and_inside_another_model():
    model = made()
    wake(model)
    other = nn.ModuleDict(dict(inner=made()))
    state = nn.ModuleDict(dict(inner=model)).state_dict()
    assert all(name.startswith('inner.model.') for name in state)
    load_state_dict(other, dict(state), strict=True)
    x = images()
    assert torch.equal(other['inner'](x), model(x))


def test_an_incomplete_or_foreign_checkpoint_is_an_error():
    state = made().state_dict()
    del state['model.encoder.layers.2.attn.qkv.branches.k.cell.alpha']
    with pytest.raises(RuntimeError, match=r'Missing key.*layers\.2.*branches\.k\.cell\.alpha'):
        made().load_state_dict(state)
    with pytest.raises(RuntimeError, match='Unexpected key'):
        made().load_state_dict(made(adapter=CONV).state_dict())


@torch.no_grad()
def test_a_plain_model_s_checkpoint_loads_under_its_own_names():
    plain = Segmentor()
    for value in plain.parameters():
        nn.init.normal_(value, std=0.1)
    model = made()
    model.load_state_dict(plain.state_dict())
    x = images()
    assert torch.equal(model(x), plain(x))  # adapters start at zero
    assert torch.equal(
        model.model.encoder.layers[1].attn.qkv.base.weight, plain.encoder.layers[1].attn.qkv.weight
    )


@torch.no_grad()
def test_a_folded_model_s_checkpoint_reloads_and_a_merged_one_is_plain():
    x = images()
    model, other = (made(adapter=NAS | dict(operations=['none', 'skip_connect'])) for _ in '12')
    wake(model)
    expected = model(x)
    for folded in (model, other):
        fold(folded)
    assert len(model.state_dict()) == 2 + 4 * 3 * 3
    other.load_state_dict(model.state_dict())
    assert torch.allclose(other(x), expected, rtol=0, atol=1e-10)
    merge_exact(other)
    plain = Segmentor()
    plain.load_state_dict(other.model.state_dict())
    assert torch.allclose(plain(x), expected, rtol=0, atol=1e-10)


def test_full_fine_tuning_and_decoder_only_are_freezing_rules():
    decoder = {'model.decoder.weight', 'model.decoder.bias'}
    assert trained(made(adapter=None)) == decoder
    assert set(made(adapter=None).state_dict()) == decoder
    everything = made(adapter=None, trainable=['.*'])
    assert trained(everything) == {f'model.{name}' for name, _ in Segmentor().named_parameters()}
    assert everything.state_dict().keys() == trained(everything)


def test_parameters_are_released_by_the_names_of_the_plain_part():
    model = made(trainable=[r'layers\.0\.attn\.qkv\.bias', r'.*\.ln[12]\..*'])
    released = {name for name in trained(model) if '.branches.' not in name and 'enc' in name}
    norms = {
        f'model.encoder.layers.{i}.ln{j}.{k}'
        for i in range(4)
        for j in (1, 2)
        for k in ('weight', 'bias')
    }
    assert released == norms | {'model.encoder.layers.0.attn.qkv.base.bias'}
    assert released <= set(model.state_dict())


def test_a_config_builds_it_and_the_losses_have_what_adapters_add():
    model = made(adapter=ConfigDict(CONV), targets=[r'layers\.[01]\.attn\.qkv'])
    model.train()
    x = images()
    losses = model(x, mode='loss')
    assert set(losses) == {'loss', 'loss_balance'}
    gates = [layer.attn.qkv.gate for layer in model.model.encoder.layers[:2]]
    losses['loss_balance'].backward()
    assert all(gate.score.grad.abs().sum() > 0 for gate in gates)
    assert auxiliary_losses(model) == {}  # taken
    model.eval()
    assert set(model(x, mode='loss')) == {'loss'}
    assert set(made()(x, mode='loss')) == {'loss'}


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(part='backbone'), "part: the Segmentor has no part 'backbone'"),
        (dict(adapter=dict(type='nas_lora.Prefix')), "adapter: there is no {'type': 'nas_lora.Pre"),
        (
            dict(adapter=dict(rank=3)),
            "adapter: there is no {'rank': 3}; choose from dict(type='nas",
        ),
        (dict(adapter=NAS | dict(rang=3)), "adapter (type='nas_lora.NASLoRALinear'): TypeError:"),
        (dict(adapter=NAS | dict(rank=0)), 'rank must be a positive integer, got 0'),
        (
            dict(targets=['qvk']),
            "targets: 'qvk' matches no full name; linear layers are layers.0.attn.qkv, layers",
        ),
        (dict(targets=['(']), "targets: '(' is not a regular expression"),
        (
            dict(targets=[]),
            'block, or a list of regular expressions, got []',
        ),
        (
            dict(targets=3),
            'block, or a list of regular expressions, got 3',
        ),
        (
            dict(targets='.*qkv'),
            "block, or a list of regular expressions, got '.*qkv'",
        ),
        (
            dict(targets=[r'layers\.0\.attn.*']),
            'targets: layers.0.attn.qkv is inside layers.0.attn; choose one of them',
        ),
        (dict(targets=[r'layers\.0\.ln1']), 'adapts an nn.Linear, got a LayerNorm'),
        (dict(trainable=['head.*']), "trainable: 'head.*' matches no parameter of the encoder"),
        (dict(trainable=3), 'trainable must be a list of regular expressions, got 3'),
        (dict(trainable='.*'), "trainable must be a list of regular expressions, got '.*'"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        made(**options)


def test_a_refused_encoder_is_whole():
    encoder = tiny_encoder()
    before = list(encoder.state_dict())
    with pytest.raises(UserError):
        adapt(encoder, NAS | dict(rank=0))
    assert list(encoder.state_dict()) == before
