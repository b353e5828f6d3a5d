"""Loss scaling and recomputed blocks: what they must not change."""

from copy import deepcopy

import pytest
import torch
from conftest import runner_of
from mmengine.runner import Runner
from tiny import SPACE, images, randomize, tiny_config, tiny_model

from tas_lora import UserError, apis, load_supernet
from tas_lora.models.safe_load import read_state_dict

ONE = {'custom_hooks.0.router_warmup_epochs': 0}


def one_batch(runner) -> dict:
    return next(iter(runner.train_dataloader))


def with_experts(runner):
    for layer in runner.model.backbone.mole_layers():  # at 0 the router has no gradient
        torch.nn.init.normal_(layer.lora_b, std=0.1)
    return runner


def test_a_scaled_step_is_the_step_of_unscaled_gradients(digits_config):
    """float32 with a scale of 2**16 against float32."""
    weights = []
    for scaled in (False, True):
        cfg = digits_config('moLE', images=64, options=ONE)
        runner = with_experts(runner_of(cfg))
        start = deepcopy(runner.model.state_dict())
        if scaled:
            scaler = torch.amp.GradScaler('cpu')
            for wrapper in runner.optim_wrapper.values():
                wrapper.scaler = scaler
        for i in range(3):
            runner.train_loop.run_iter(i, one_batch(runner))
        weights.append(runner.model.state_dict())
    moved = {n.split('.')[0] for n in start if not torch.equal(start[n], weights[1][n])}
    assert moved == {'backbone', 'router'}
    for name in weights[0]:
        assert (weights[0][name] - weights[1][name]).abs().max() <= 1e-7, name


def test_float16_trains_and_keeps_its_scale_over_a_resume(digits_config):
    def config():
        cfg = digits_config('moLE', images=64, options=ONE)
        cfg.optim_wrapper.amp = 'float16'
        return cfg

    whole, resumed = config(), config()
    runner = Runner.from_cfg(whole)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    wrappers = runner.optim_wrapper.optim_wrappers
    scaler = wrappers['experts'].scaler
    assert wrappers['router'].scaler is scaler
    scaler.load_state_dict(scaler.state_dict() | dict(scale=2.0**5))
    runner.train()
    assert scaler.get_scale() == 2.0**5
    stored = torch.load(f'{whole.work_dir}/epoch_1.pth', weights_only=False)['optimizer']
    assert stored['experts']['loss_scaler']['scale'] == 2.0**5
    resumed.load_from, resumed.resume = f'{whole.work_dir}/epoch_1.pth', True
    resumed.work_dir += '_resumed'
    apis.train(resumed)
    expected, found = (read_state_dict(f'{c.work_dir}/epoch_2.pth') for c in (whole, resumed))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert all(value.isfinite().all() for value in expected.values())


def test_an_overflow_is_no_step_and_halves_the_scale(digits_config):
    cfg = digits_config('supernet', images=64)
    cfg.optim_wrapper.amp = 'float16'
    runner = runner_of(cfg)
    scaler = runner.optim_wrapper.scaler
    scaler.load_state_dict(scaler.state_dict() | dict(scale=2.0**120))
    before = deepcopy(runner.model.state_dict())
    runner.train_loop.run_iter(0, one_batch(runner))
    assert all(torch.equal(before[n], v) for n, v in runner.model.state_dict().items())
    assert scaler.get_scale() == 2.0**119


def test_other_wrappers_of_experts_are_refused(digits_config):
    cfg = digits_config('moLE')
    cfg.optim_wrapper.type = 'OptimWrapper'
    with pytest.raises(UserError, match='must be tas_lora.SupernetOptimWrapper'):
        runner_of(cfg)
    cfg = digits_config('supernet')
    cfg.optim_wrapper.amp = 'int8'
    with pytest.raises(UserError, match=r"amp must be one of .*'bfloat16', 'float16'.*got 'int8'"):
        runner_of(cfg)


def pair(mole: bool) -> list:
    """The same random model with all activations kept, and with none."""
    models = []
    for with_cp in (False, True):
        config = tiny_config(mole)
        config['model']['backbone']['with_cp'] = with_cp
        torch.manual_seed(0)
        models.append(randomize(load_supernet(config), std=0.3).train())
    return models


@pytest.mark.parametrize('mole', [False, True])
@pytest.mark.parametrize('hook', [False, True])
def test_recomputed_blocks_have_the_same_gradients(mole, hook):
    """Merged by the hook before the forward; or for the forward alone, gone in the backward."""
    models, gradients = pair(mole), []
    for model in models:
        for subnet in (SPACE.smallest(), SPACE.largest()):
            model.set_subnet(subnet)
            if hook:
                model.merge_experts()
            model(images()).square().sum().backward()
            assert model.is_merged == (hook and mole)
            model.unmerge_experts()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_recomputed_blocks_keep_less():
    kept = []
    for model in pair(mole=True):
        sizes = []
        model.merge_experts()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t
        ):
            model(images(8))
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 3


def test_recomputed_blocks_train_with_accumulation(digits_config):
    weights = []
    for with_cp in (False, True):
        options = {**ONE, 'model.backbone.with_cp': with_cp}
        cfg = digits_config('moLE', images=64, options=options)
        for name in ('experts', 'router'):
            cfg.optim_wrapper[name].accumulative_counts = 2
        Runner.from_cfg(cfg).train()
        weights.append(read_state_dict(f'{cfg.work_dir}/epoch_2.pth'))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_evaluation_is_not_recomputed(monkeypatch):
    calls = []
    target = 'tas_lora.models.backbones.elastic_vit.recomputed'
    monkeypatch.setattr(target, lambda block, *inputs: calls.append(block) or block(*inputs))
    model = tiny_model()
    model.backbone.with_cp = True
    with torch.no_grad():
        model(images())
    assert not calls
    model(images())
    assert len(calls) == 3


def test_a_clipped_scaled_step_of_a_router_in_its_warmup(digits_config):
    """Gradients are clipped unscaled; a router without gradients is left alone."""
    weights = []
    for amp in (False, 'float16'):
        cfg = digits_config('moLE', images=64, options={'custom_hooks.0.router_warmup_epochs': 1})
        cfg.optim_wrapper.experts.clip_grad = dict(max_norm=0.01)
        cfg.optim_wrapper.experts.optimizer = dict(type='SGD', lr=1.0)
        cfg.optim_wrapper.amp = amp
        runner = with_experts(runner_of(cfg))
        before = deepcopy(runner.model.state_dict())
        runner.train_loop.run_iter(0, one_batch(runner))
        after = runner.model.state_dict()
        change = [after[n] - before[n] for n in before]
        weights.append(torch.cat([c.flatten() for c in change]))
        moved = {n for n in before if not torch.equal(before[n], after[n])}
        assert moved
        assert all('lora_' in n for n in moved)
    for change in weights:
        assert change.norm() == pytest.approx(0.01, rel=1e-2)
