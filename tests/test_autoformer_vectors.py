"""The elastic backbone against outputs recorded from the official AutoFormer code."""

import argparse

import pytest
import torch
from vectors import VECTORS, cases, images, model_config, official_weights, subnet

from tas_lora import count_flops, count_params, load_supernet
from tas_lora.models.checkpoint import from_autoformer


@pytest.fixture(scope='module')
def supernets(tmp_path_factory):
    """Our models, loaded from files in the form the official trainer writes."""
    models = {}
    for name, entry in VECTORS.items():
        path = tmp_path_factory.mktemp('official') / f'{name}.pth'
        args = argparse.Namespace(gp=True, lr=5e-4)
        torch.save(dict(model=official_weights(entry), epoch=499, args=args), path)
        models[name] = load_supernet(model_config(entry), path)
    return models


@pytest.mark.parametrize('name', VECTORS)
def test_weights_are_rebuilt(name):
    entry, weights = VECTORS[name], official_weights(VECTORS[name])
    checks = entry['checks']
    assert len(weights) == checks['n_tensors']
    assert sum(w.numel() for w in weights.values()) == checks['n_params']
    assert weights['pos_embed'].flatten()[:3].tolist() == checks['pos_embed_first3']
    assert images(entry).flatten()[:3].tolist() == checks['input_first3']


@pytest.mark.parametrize(('name', 'i'), cases())
def test_forward(supernets, name, i):
    model, entry = supernets[name], VECTORS[name]
    case = entry['cases'][i]
    model.set_subnet(subnet(case['config']))
    with torch.no_grad():
        features = model.extract_feat(images(entry), stage='pre_logits')
        logits = model(images(entry), mode='tensor')
    assert (features - torch.tensor(case['features'])).abs().max() <= 2e-5
    assert (logits - torch.tensor(case['logits'])).abs().max() <= 2e-5


@pytest.mark.parametrize(('name', 'i'), cases())
def test_counts(supernets, name, i):
    case, spec = VECTORS[name]['cases'][i], supernets[name].image_spec
    assert count_params(subnet(case['config']), **spec) == case['params']
    assert count_flops(subnet(case['config']), **spec) == case['flops']


@pytest.mark.parametrize('name', VECTORS)
def test_gradients(supernets, name):
    model, entry = supernets[name], VECTORS[name]
    case = entry['cases'][2]
    model.set_subnet(subnet(case['config']))
    model.zero_grad()
    loss = model(images(entry), mode='tensor').square().sum()
    loss.backward()
    assert loss.item() == pytest.approx(case['loss'], rel=1e-5)
    parameters = dict(model.named_parameters())
    renamed = from_autoformer({key: torch.zeros(6, 1) for key in official_weights(entry)})
    ours = dict(zip(official_weights(entry), renamed, strict=True))
    assert {k for k, v in ours.items() if parameters[v].grad is None} == set(
        case['params_without_grad']
    )
    for key, expected in case['grads'].items():
        grad = parameters[ours[key]].grad
        if key.endswith('qkv.weight'):  # (3, Q, C) back to interleaved rows
            grad = grad.transpose(0, 1).flatten(0, 1)
        assert grad.norm().item() == pytest.approx(expected['norm'], rel=1e-4)
        first = torch.tensor(expected['first8'])
        assert torch.allclose(grad.flatten()[:8], first, rtol=1e-4, atol=1e-5 * first.abs().max())
