"""Compiled branches of blocks: the same gradients, code shared between blocks, copies apart."""

from copy import deepcopy

import torch
from tiny import SPACE, images, randomize, tiny_config
from torch._dynamo.utils import counters

from tas_lora import load_supernet


def model_of(compiled: bool):
    config = tiny_config()
    config['model']['backbone'].update(compile_blocks=compiled, drop_path_rate=0.0)
    torch.manual_seed(0)
    return randomize(load_supernet(config), std=0.3).train()


def gradients(model) -> dict:
    for subnet in (SPACE.smallest(), SPACE.largest()):
        model.set_subnet(subnet)
        model.merge_experts()
        model(images()).square().sum().backward()
        model.unmerge_experts()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_compiled_branches():
    counters.clear()
    plain, compiled = (model_of(on) for on in (False, True))
    expected, found = gradients(plain), gradients(compiled)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= 1e-5 * (1 + gradient.abs().max()), name
    # Two subnets, two branches each; five blocks ran. The first block of all sees an input
    # without a gradient, the others one with.
    assert 4 <= counters['stats']['unique_graphs'] <= 8
    compiled.set_subnet(SPACE.largest())
    before, other = compiled(images()), deepcopy(compiled)
    torch.nn.init.zeros_(other.backbone.blocks[0].fc1.weight)
    assert torch.equal(compiled(images()), before)
    assert not torch.equal(other(images()), before)
