"""DYNAS: the rate follows the subnet's size, and groups of subnets keep momenta apart."""

from copy import deepcopy
from math import log

import numpy as np
import pytest
import torch
from mmengine.runner import Runner
from tiny import autoformer

from tas_lora import UserError, apis, count_params
from tas_lora.engine import MomentumSeparationHook
from tas_lora.engine.hooks.dynas_hooks import decay_exponent
from tas_lora.models.safe_load import read_state_dict

SEPARATE = dict(type='tas_lora.MomentumSeparationHook', group_by='depth')


def spy_on_iterations(runner) -> list[dict]:
    """What every iteration to come used: subnet, rates, gradients, weights after it."""
    seen, call_hook = [], runner.call_hook

    def spy(point, **kwargs):
        call_hook(point, **kwargs)
        if point == 'before_train_iter':
            optimizer = runner.optim_wrapper.optimizer
            rates = [group['lr'] for group in optimizer.param_groups]
            step = optimizer.step
            seen.append(dict(subnet=runner.model.subnet, rates=rates))

            def keep_gradients(*args, **kw):
                parameters = runner.model.parameters()
                seen[-1]['grads'] = [None if p.grad is None else p.grad.clone() for p in parameters]
                optimizer.step = step
                return step(*args, **kw)

            optimizer.step = keep_gradients
        if point == 'after_train_iter':
            seen[-1]['weights'] = [p.detach().clone() for p in runner.model.parameters()]

    runner.call_hook = spy
    return seen


def test_exponent_at_both_ends_and_between():
    space, _ = autoformer('t')
    small, large = count_params(space.smallest()), count_params(space.largest())
    assert decay_exponent(small, small, large) == pytest.approx(4)
    assert decay_exponent(large, small, large) == 0.25
    assert decay_exponent((small * large) ** 0.5, small, large) == pytest.approx((4 + 0.25) / 2)
    assert decay_exponent(large, small, large, gamma_max=1.0) == 1  # linear decay for all
    assert decay_exponent(small, small, small) == 1


@pytest.mark.parametrize('begin', [0, 1])
def test_rate_of_every_iteration_against_the_formula(digits_config, begin):
    cfg = digits_config('supernet', images=64)
    hook = dict(type='tas_lora.ComplexityAwareLRHook', begin=begin, min_fraction=0.1)
    cfg.custom_hooks = [hook]
    cfg.param_scheduler = dict(type='ConstantLR', factor=0.5, begin=0, end=1)
    runner = Runner.from_cfg(cfg)
    seen = spy_on_iterations(runner)
    runner.train()
    spec, space = runner.model.image_spec, runner.train_loop.space
    sizes = [log(count_params(s, **spec)) for s in (space.smallest(), space.largest())]
    start, total = 4 * begin, 8
    assert len(seen) == total
    assert len({round(step['rates'][0], 9) for step in seen[start:]}) > 2
    for i, step in enumerate(seen):
        gamma = np.interp(log(count_params(step['subnet'], **spec)), sizes, [4.0, 0.25])
        left = (total - i) / (total - start)
        expected = 4e-3 * (0.5 if i < start else 0.9 * left**gamma + 0.1)
        assert step['rates'] == pytest.approx([expected] * len(step['rates']))


def test_a_group_steps_as_an_optimizer_of_its_own(digits_config):
    """Reference: one AdamW a depth over the same weights; only the drawn depth's one steps."""
    cfg = digits_config('supernet', images=96)
    cfg.custom_hooks, cfg.param_scheduler = [SEPARATE], None
    runner = Runner.from_cfg(cfg)
    weights = [torch.nn.Parameter(p.detach().clone()) for p in runner.model.parameters()]
    seen = spy_on_iterations(runner)
    runner.train()
    groups = {
        depth: torch.optim.AdamW(weights, lr=4e-3, weight_decay=0.05)
        for depth in runner.train_loop.space.depth
    }
    assert len({step['subnet'].depth for step in seen}) == 3
    for step in seen:
        for weight, gradient in zip(weights, step['grads'], strict=True):
            weight.grad = gradient
        groups[step['subnet'].depth].step()
        for weight, found in zip(weights, step['weights'], strict=True):
            assert (weight - found).abs().max() < 1e-6


def test_a_step_leaves_the_state_of_other_groups_alone(digits_config):
    cfg = digits_config('supernet', images=96)
    cfg.custom_hooks = [SEPARATE]
    runner = Runner.from_cfg(cfg)
    hook = next(h for h in runner.hooks if isinstance(h, MomentumSeparationHook))
    before, changes, call_hook = {}, [], runner.call_hook

    def spy(point, **kwargs):
        call_hook(point, **kwargs)
        if point == 'before_train_iter':
            before.update(deepcopy({g: dict(s) for g, s in hook.states.items()}))
        if point == 'after_train_iter':
            after = {g: [v['exp_avg'] for v in s.values()] for g, s in hook.states.items()}
            same = {
                g: bool(before[g])
                and all(map(torch.equal, after[g], [v['exp_avg'] for v in before[g].values()]))
                for g in after
            }
            changes.append((hook.group_of(runner.model.subnet), same))

    runner.call_hook = spy
    runner.train()
    others = [same[g] for active, same in changes for g in same if g != active]
    assert len(others) > 5
    assert all(others)
    assert not any(same[active] for active, same in changes)


def test_one_group_is_plain_training(digits_config):
    trained = []
    for hooks in ([], [SEPARATE]):
        cfg = digits_config('supernet', images=64)
        cfg.train_cfg.space.depth = [3]
        cfg.custom_hooks = hooks
        Runner.from_cfg(cfg).train()
        trained.append(read_state_dict(f'{cfg.work_dir}/epoch_2.pth'))
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])


def test_resumed_dynas_equals_an_undisturbed_one(digits_config):
    def config():
        cfg = digits_config('supernet', images=96)
        cfg.custom_hooks = [dict(type='tas_lora.ComplexityAwareLRHook'), SEPARATE]
        cfg.param_scheduler = None
        return cfg

    whole, resumed = config(), config()
    Runner.from_cfg(whole).train()
    resumed.load_from, resumed.resume = f'{whole.work_dir}/epoch_1.pth', True
    resumed.work_dir += '_resumed'
    apis.train(resumed)
    expected, found = (read_state_dict(f'{c.work_dir}/epoch_2.pth') for c in (whole, resumed))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_groups_of_every_attribute():
    space, _ = autoformer('s')
    largest = space.largest()
    for field in ('embed_dim', 'depth', 'num_heads', 'mlp_ratio'):
        hook = MomentumSeparationHook(field)
        hook.space = space
        assert [hook.group_of(s) for s in (space.smallest(), largest)] == [0, 2]
    hook, rng = MomentumSeparationHook('num_heads', seed=3), np.random.default_rng(0)
    hook.space = space
    pairs = [(hook.group_of(s), s.num_heads) for s in (space.sample(rng) for _ in range(50))]
    blocks = [b for b in range(12) if all(heads[b] == 5 + group for group, heads in pairs)]
    assert len(blocks) == 1  # one block decides for all


@pytest.mark.parametrize(
    ('stage', 'change', 'message'),
    [
        ('supernet', dict(custom_hooks=[dict(SEPARATE, group_by='width')]), 'one of .*embed_dim'),
        ('moLE', dict(custom_hooks=[dict(type='tas_lora.MoLEHook'), SEPARATE]), 'one optimizer'),
        (
            'supernet',
            dict(
                custom_hooks=[dict(type='tas_lora.ComplexityAwareLRHook')],
                train_cfg=dict(strategy=dict(type='tas_lora.SandwichRule')),
            ),
            'a strategy that draws one',
        ),
        (
            'supernet',
            dict(custom_hooks=[dict(type='tas_lora.ComplexityAwareLRHook', min_fraction=1)]),
            'min_fraction must be',
        ),
        (
            'supernet',
            dict(custom_hooks=[dict(type='tas_lora.ComplexityAwareLRHook', begin=2)]),
            'would never be used',
        ),
        (
            'supernet',
            dict(custom_hooks=[SEPARATE], optim_wrapper=dict(accumulative_counts=2)),
            'accumulative_counts: DYNAS depends on',
        ),
    ],
)
def test_configs_that_dynas_cannot_use(digits_config, stage, change, message):
    cfg = digits_config(stage)
    cfg.merge_from_dict(change)
    with pytest.raises(UserError, match=message):
        apis.check_training(cfg)  # before anything is trained
