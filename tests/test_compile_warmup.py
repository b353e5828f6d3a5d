"""The warm-up of compiled blocks: nothing is compiled after it, and training is unaffected."""

import random
from copy import deepcopy

import numpy as np
import pytest
import torch
from conftest import runner_of
from hypothesis import given
from tiny import SPACE, SPACE_DICT, every, repeatable, spaces, tiny_config
from torch._dynamo.backends.common import aot_autograd

from tas_lora import SearchSpace
from tas_lora.engine.hooks import CompileWarmupHook, compile_warmup_hook
from tas_lora.engine.hooks.compile_warmup_hook import covering_subnets


@pytest.fixture
def compiled(monkeypatch):
    """How many forward and backward graphs ``torch.compile`` makes; they run as they are."""
    counts = dict(forward=0, backward=0)

    def compiler(what):
        def compile_graph(graph, _):
            counts[what] += 1
            return graph.forward

        return compile_graph

    backend = aot_autograd(fw_compiler=compiler('forward'), bw_compiler=compiler('backward'))
    real = torch.compile
    monkeypatch.setattr(torch, 'compile', lambda f, **kwargs: real(f, backend=backend, **kwargs))
    torch._dynamo.reset()
    yield counts
    torch._dynamo.reset()


NARROW = SearchSpace(**SPACE_DICT | dict(embed_dim=[16]))  # which compiles in half of the time


def runner_with_hook(digits_config, space=NARROW, **options):
    """The digits' training with experts of a tiny supernet, right before its first iteration."""
    cfg, tiny = digits_config('moLE', images=64), tiny_config()['model']
    cfg.model.update(backbone=tiny['backbone'] | options, router=tiny['router'])
    cfg.model.head.init_std = 0.1
    cfg.train_cfg.space = SPACE_DICT | dict(embed_dim=list(space.embed_dim))
    cfg.optim_wrapper.amp = 'bfloat16'
    cfg.custom_hooks.append(dict(type='tas_lora.CompileWarmupHook'))
    return runner_of(cfg)


def shapes(subnets) -> set:
    """What compiled code depends on, for each block of some subnets."""
    return {
        (place, s.embed_dim, s.patch_size, what, size)
        for s in subnets
        for what, sizes in (('heads', s.num_heads), ('hidden', s.hidden_dims))
        for place, size in enumerate(sizes)
    }


@repeatable
@given(spaces(depths=(1, 2, 3)))
def test_a_few_subnets_have_all_block_shapes(space):
    found = covering_subnets(space)
    assert shapes(found) == shapes(every(space))
    assert all(subnet in space for subnet in found)
    assert len(found) == len(space.embed_dim) * max(len(space.num_heads), len(space.mlp_ratio))


@repeatable
@given(spaces(depths=(2, 3)))
def test_a_parent_that_is_kept_leaves_no_shape_out(space):
    def keeps(subnet):
        return subnet == space.largest()

    found = covering_subnets(space, keeps)
    assert shapes(found) == shapes([subnet for subnet in every(space) if not keeps(subnet)])
    assert not any(map(keeps, found))


def test_patch_sizes_are_shapes_too():
    space = SearchSpace(**SPACE_DICT, patch_size=[2, 4])
    assert {s.patch_size for s in covering_subnets(space)} == {2, 4}
    assert len(covering_subnets(space)) == 2 * len(covering_subnets(SPACE))


@pytest.mark.full
@pytest.mark.filterwarnings('ignore:Your compiler for AOTAutograd')
@pytest.mark.parametrize(
    ('space', 'with_cp'),
    [pytest.param(SPACE, False, marks=pytest.mark.slow), (NARROW, True)],
)
def test_nothing_is_compiled_after_the_warmup(digits_config, compiled, space, with_cp):
    runner = runner_with_hook(digits_config, space, compile_blocks=True, with_cp=with_cp)
    # An attention for each width and number of heads, of which that of the first block sees an
    # input without a gradient; an MLP for each width and ratio.
    graphs = len(space.embed_dim) * (2 * 2 + 2)
    expected = dict(forward=graphs, backward=graphs)
    assert compiled == expected
    loop, batch = runner.train_loop, next(iter(runner.train_dataloader))
    before = deepcopy(runner.model.state_dict())
    for subnet in every(space):
        loop.draw = lambda _, subnet=subnet: [subnet]
        loop.run_iter(loop.iter, batch)
    assert compiled == expected
    assert any(not torch.equal(before[n], v) for n, v in runner.model.state_dict().items())


@pytest.mark.full
@pytest.mark.filterwarnings('ignore:Your compiler for AOTAutograd')
def test_training_does_not_notice_the_warmup(digits_config, compiled, monkeypatch):
    monkeypatch.setattr(CompileWarmupHook, 'before_train', lambda *_: None)
    runner = runner_with_hook(digits_config, compile_blocks=True, drop_path_rate=0.5)
    monkeypatch.undo()
    model, states = runner.model, []
    marked = next(p for p in model.parameters() if p.requires_grad)
    marked.grad = torch.full_like(marked, 7.0)
    before = deepcopy(model.state_dict())
    for warm in (False, True):
        torch.manual_seed(3), np.random.seed(3), random.seed(3)
        if warm:
            CompileWarmupHook().before_train(runner)
        states.append((torch.rand(4).tolist(), np.random.rand(), random.random()))
    assert states[0] == states[1]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(marked.grad, torch.full_like(marked, 7.0))
    assert all(p.grad is None for p in model.parameters() if p is not marked)
    assert model.subnet == SPACE.largest()
    assert not model.is_merged


def test_blocks_that_are_not_compiled_need_no_warmup(digits_config, compiled, monkeypatch):
    monkeypatch.setattr(compile_warmup_hook, 'run_once', None)  # calling it would fail
    runner_with_hook(digits_config)
    assert compiled == dict(forward=0, backward=0)


def test_the_batch_is_that_of_training(digits_config, compiled, monkeypatch):
    sizes = []
    monkeypatch.setattr(
        compile_warmup_hook,
        'run_once',
        lambda runner, _: sizes.append(compile_warmup_hook.batch_size_of(runner)),
    )
    runner = runner_with_hook(digits_config, compile_blocks=True)
    batch = next(iter(runner.train_dataloader))
    assert sizes == [len(batch['inputs'])] * len(covering_subnets(NARROW))
