"""Distillation after least squares: it changes what it says, and loses less."""

import re
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from nas_lora.merging.merge import merge_least_squares
from nas_lora.merging.merge_distilled import merge_distilled
from nas_lora.vits.adapt import adapt
from tiny_encoder import tiny_encoder, wake
from torch import nn

from tas_lora.errors import UserError


def adapted(**options):
    torch.manual_seed(0)
    encoder = tiny_encoder()
    adapt(encoder, dict(type='nas_lora.NASLoRALinear', **options))
    wake(encoder)
    return encoder


def pictures(number: int = 8) -> torch.Tensor:
    """Smooth, so that a token tells of its neighbours, as in photographs."""
    small = torch.randn(number, 3, 16, 16, dtype=torch.float64)
    return F.interpolate(small, 64, mode='bicubic')


@torch.no_grad()
def lost(merged, encoder, images) -> float:
    target = encoder(images)[0]
    return float((merged(images)[0] - target).square().mean() / target.var())


def test_it_loses_less_than_least_squares_on_images_never_seen():
    encoder = adapted()
    batches, others = [pictures() for _ in range(6)], pictures(16)
    fitted, distilled = deepcopy(encoder), deepcopy(encoder)
    fits = merge_least_squares(fitted, batches)
    report = merge_distilled(distilled, batches, steps=40)
    assert lost(distilled, encoder, others) < 0.9 * lost(fitted, encoder, others)
    assert report.r2 == fits.r2
    assert report.errors[0] == pytest.approx(lost(fitted, encoder, batches[0]))
    assert report.errors[1] == pytest.approx(lost(distilled, encoder, batches[0]))
    plain = tiny_encoder()
    plain.load_state_dict(distilled.state_dict())
    assert [type(m) for m in distilled.modules()] == [type(m) for m in plain.modules()]
    assert not any(
        p.requires_grad for layer in distilled.layers for p in layer.attn.qkv.parameters()
    )


def test_only_the_merged_layers_change():
    encoder = adapted()
    before = encoder.state_dict()
    before = {name.replace('.base', ''): value.clone() for name, value in before.items()}
    merge_distilled(encoder, [pictures(), pictures()], steps=2)
    changed = {n for n, value in encoder.state_dict().items() if not torch.equal(value, before[n])}
    assert changed == {f'layers.{i}.attn.qkv.{k}' for i in range(4) for k in ('weight', 'bias')}


def test_steps_that_make_it_worse_are_taken_back():
    batches, encoder = [pictures(), pictures()], adapted()
    fitted = deepcopy(encoder)
    merge_least_squares(fitted, batches)
    report = merge_distilled(encoder, batches, steps=3, rate=10.0)
    assert report.errors[0] == report.errors[1] > 0
    assert all(torch.equal(v, fitted.state_dict()[n]) for n, v in encoder.state_dict().items())


def test_it_reports_metrics_and_refuses_too_few_tokens():
    encoder, x = adapted(), pictures(2)
    batches = [pictures(), pictures()]
    report = merge_distilled(encoder, batches, lambda: float(encoder(x)[0].sum()), steps=2)
    assert report.before != report.after == float(encoder(x)[0].sum())
    assert 'lost without and with distillation: ' in str(report)
    encoder = adapted()
    with pytest.raises(UserError, match=re.escape('merge(least_squares) needs more tokens')):
        merge_distilled(encoder, [pictures(1)])
    assert not any(type(layer.attn.qkv) is nn.Linear for layer in encoder.layers)
