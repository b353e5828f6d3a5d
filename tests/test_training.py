"""Both training stages through MMEngine's runner."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, call_tool, runner_of
from mmengine.config import Config
from mmengine.runner import Runner

from tas_lora import SearchSpace, UserError, apis
from tas_lora.engine.hooks.mole_stats_hook import delta_ratio
from tas_lora.models.safe_load import read_state_dict


def record_subnets(runner) -> list:
    """Subnets of the training iterations to come."""
    drawn, set_subnet = [], runner.model.set_subnet

    def spy(subnet):
        if runner.model.training:
            drawn.append(subnet)
        set_subnet(subnet)

    runner.model.set_subnet = spy
    return drawn


def state(runner) -> dict:
    return {k: v.clone() for k, v in runner.model.state_dict().items()}


def is_expert(name: str) -> bool:
    return 'lora_' in name


def test_subnets_are_a_function_of_seed_and_iteration(digits_config):
    cfg = digits_config('supernet', images=64)
    runner = Runner.from_cfg(cfg)
    drawn = record_subnets(runner)
    runner.train()
    space = SearchSpace(**cfg.space)
    expected = [space.sample(np.random.default_rng((0, i))) for i in range(runner.iter)]
    assert drawn == expected
    assert len(set(drawn)) > 2


def test_stage_two_moves_experts_alone_then_the_router_too(digits_config):
    cfg = digits_config('moLE', options={'custom_hooks.0.router_warmup_epochs': 1})
    runner = Runner.from_cfg(cfg)
    before = state(runner)
    runner.train()
    warmed = read_state_dict(f'{cfg.work_dir}/epoch_1.pth')
    after = read_state_dict(f'{cfg.work_dir}/epoch_2.pth')
    for name, start in before.items():
        moved = [not torch.equal(start, later[name]) for later in (warmed, after)]
        if is_expert(name):
            assert moved[1], name
        elif name.startswith('router.'):
            assert not moved[0], name
        else:
            assert moved == [False, False], name
    assert any(n.startswith('router.') and not torch.equal(before[n], after[n]) for n in before)


def unfrozen(supernet_rate: float) -> dict:
    """Options under which experts, router and supernet are moved by plain gradient descent."""
    rates = dict(experts=0.5, router=0.25, supernet=supernet_rate)
    plain = dict(type='SGD', weight_decay=0, momentum=0)
    wrappers = {name: dict(optimizer=plain | dict(lr=rate)) for name, rate in rates.items()}
    options = {'model.freeze_supernet': False, 'custom_hooks.0.router_warmup_epochs': 0}
    return options | {f'optim_wrapper.{k}': v for k, v in wrappers.items()}


def by_part(name: str) -> float:
    """The rates of :func:`unfrozen`."""
    return 0.5 if is_expert(name) else 0.25 if name.startswith('router.') else 0.125


def by_rules(name: str) -> float:
    """The same under ``RULES``."""
    is_bias = not name.startswith('router.') and name.endswith('.bias') and 'norm' not in name
    return by_part(name) * (3 if name.endswith('lora_b') else 2 if is_bias else 1)


RULES = dict(experts=dict(custom_keys=dict(lora_b=dict(lr_mult=3))), supernet=dict(bias_lr_mult=2))


@pytest.mark.parametrize(('rules', 'rate_of'), [({}, by_part), (RULES, by_rules)])
def test_the_supernet_trains_beside_its_experts_at_its_own_rate(digits_config, rules, rate_of):
    options = unfrozen(0.125)
    options |= {f'optim_wrapper.{part}.paramwise_cfg': rule for part, rule in rules.items()}
    runner = runner_of(digits_config('moLE', options=options))
    model = runner.model
    torch.nn.init.normal_(model.backbone.blocks[0].fc1.lora_b)  # else lora_a has no gradient
    batch = model.data_preprocessor(next(iter(runner.train_dataloader)), True)
    loss = model(**batch, mode='loss')['loss']
    names, values = zip(*model.named_parameters(), strict=True)
    gradients = dict(zip(names, torch.autograd.grad(loss, values, allow_unused=True), strict=True))
    before = state(runner)
    model.merge_experts()
    runner.optim_wrapper.update_params(model(**batch, mode='loss')['loss'])
    for name, gradient in gradients.items():
        expected = before[name] if gradient is None else before[name] - rate_of(name) * gradient
        torch.testing.assert_close(model.get_parameter(name), expected, rtol=1e-5, atol=1e-6)
    assert gradients['backbone.pos_embed'].any()
    groups = [len(w.optimizer.param_groups) for w in runner.optim_wrapper.optim_wrappers.values()]
    assert groups == ([2, 1, 2] if rules else [1, 1, 1])


def test_rules_for_parameters_belong_into_a_part(digits_config):
    options = {'optim_wrapper.paramwise_cfg': dict(bias_lr_mult=2)}
    with pytest.raises(
        UserError, match='Constructor.paramwise_cfg would apply to no part: give it to'
    ):
        runner_of(digits_config('moLE', options=options))


@pytest.mark.parametrize('unwanted', ['model.freeze_supernet', 'optim_wrapper.supernet'])
def test_a_supernet_that_trains_needs_an_optimizer_and_the_other_way_round(digits_config, unwanted):
    options = unfrozen(0.1)
    del options[unwanted]
    with pytest.raises(UserError, match='Constructor.supernet goes with model.freeze_supernet'):
        runner_of(digits_config('moLE', options=options))


def test_statistics_of_experts_are_logged(digits_config):
    cfg = digits_config('moLE', options={'custom_hooks.0.router_warmup_epochs': 0})
    runner = Runner.from_cfg(cfg)
    runner.train()
    scalars = runner.message_hub.log_scalars
    assert scalars['train/delta_w'].data[0][0] == 0
    assert scalars['train/delta_w'].current() > 0
    assert 0 < scalars['train/gate_shift'].current() < 2
    assert 0 <= scalars['train/top_gate_kept'].current() <= 1


def reference_ratio(model, subnet, rank: int) -> float:
    """|dW| / |W| from the definition, expert by expert."""
    change = size = 0.0
    gates = model.router(subnet)
    for block, block_gates in zip(model.backbone.blocks[: subnet.depth], gates, strict=True):
        width, inner, hidden = subnet.embed_dim, 16 * subnet.num_heads[0], subnet.hidden_dims[0]
        qkv = block.attn.qkv
        kinds = [
            (qkv.weight[part], qkv.lora_a, qkv.lora_b[:, part], inner, width, 0)
            for part in range(3)
        ]
        for j, (layer, out, inp) in enumerate(
            [
                (block.attn.proj, width, inner),
                (block.fc1, hidden, width),
                (block.fc2, width, hidden),
            ],
            start=1,
        ):
            kinds.append((layer.weight, layer.lora_a, layer.lora_b, out, inp, j))
        for weight, down, up, out, inp, j in kinds:
            experts = zip(block_gates[j], up, down, strict=True)
            delta = sum(p * u[:out] @ d[:, :inp] / rank for p, u, d in experts)
            change += delta.square().sum()
            size += weight[:out, :inp].square().sum()
    return float((change / size).sqrt())


def test_delta_ratio_against_the_formula(digits_config):
    model = Runner.from_cfg(digits_config('moLE')).model
    for layer in model.backbone.mole_layers():
        torch.nn.init.normal_(layer.lora_b, std=0.1)
    model.set_subnet(model.router.space.smallest())
    with torch.no_grad():
        expected = reference_ratio(model, model.subnet, rank=4)
    assert expected > 0.01
    assert delta_ratio(model) == pytest.approx(expected, rel=1e-5)


def test_merges_once_per_iteration_and_evaluated_subnet(digits_config):
    cfg = digits_config('moLE', images=32, options={'train_cfg.val_interval': 2})
    cfg.custom_hooks = cfg.custom_hooks[:1]  # the statistics merge, too
    cfg.val_dataloader.batch_size = 64  # five batches a subnet
    runner = Runner.from_cfg(cfg)
    merges, merge = [], runner.model.merge_experts

    def spy(*args):
        merges.append(runner.model.training)
        merge(*args)

    runner.model.merge_experts = spy
    runner.train()
    assert merges.count(True) == runner.iter
    assert merges.count(False) == 2
    assert not runner.model.is_merged


def test_validation_restores_the_subnet_and_serves_save_best(digits_config):
    cfg = digits_config('moLE', images=32, options={'train_cfg.val_interval': 1})
    cfg.default_hooks.checkpoint.save_best = 'largest/accuracy/top1'
    runner = Runner.from_cfg(cfg)
    drawn = record_subnets(runner)
    runner.train()
    assert runner.model.subnet == drawn[-1]
    assert list(Path(cfg.work_dir).glob('best_largest*'))


def test_mixed_precision_keeps_weights_and_merge_in_float32(digits_config):
    cfg = digits_config('moLE', images=32, options={'train_cfg.val_interval': 5})
    cfg.optim_wrapper.amp = True
    runner = Runner.from_cfg(cfg)
    merged, features = set(), set()

    def spy(layer, inputs, output):
        if runner.model.training:
            merged.add(layer.merged.dtype)
            features.add(output.dtype)

    runner.model.backbone.blocks[0].fc1.register_forward_hook(spy)
    runner.train()
    assert merged == {torch.float32}
    assert features == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in runner.model.parameters())
    assert np.isfinite(runner.message_hub.get_scalar('train/loss').current())


def test_accumulation_steps_both_optimizers_together(digits_config):
    cfg = digits_config('moLE', images=128, options={'custom_hooks.0.router_warmup_epochs': 0})
    for name in ('experts', 'router'):
        cfg.optim_wrapper[name].accumulative_counts = 4
    runner = Runner.from_cfg(cfg)
    states, step = [], runner.call_hook

    def spy(hook, **kwargs):
        step(hook, **kwargs)
        if hook == 'after_train_iter':
            states.append(
                {
                    n: p.detach().clone()
                    for n, p in runner.model.named_parameters()
                    if p.requires_grad
                }
            )

    runner.call_hook = spy
    runner.train()
    moved = [
        {n.split('.')[0] for n in a if not torch.equal(a[n], b[n])}
        for a, b in zip(states, states[1:], strict=False)
    ]
    assert [bool(m) for m in moved] == [i % 4 == 2 for i in range(len(moved))]
    assert moved[2] == {'backbone'}  # with U = 0 the router's first gradient is zero
    assert moved[6] == {'backbone', 'router'}


def run_tool(digits_root, tmp_path, *arguments) -> str:
    """Train stage 2 of the digits for an epoch by the tool; returns its log."""
    work_dir = tmp_path / 'work'
    options = [
        f'train_dataloader.dataset.dataset.dataset.data_root={digits_root}',
        f'val_dataloader.dataset.dataset.data_root={digits_root}',
        'train_dataloader.dataset.times=1',
        'train_cfg.max_epochs=1',
    ]
    config = ROOT / 'configs' / 'digits_moLE.py'
    arguments = ('--work-dir', work_dir, *arguments, '--cfg-options', *options)
    assert call_tool('train.py', config, *arguments, f'load_from={tmp_path / "start.pth"}') == 0
    return max(work_dir.rglob('*.log'), key=lambda path: path.stat().st_mtime).read_text()


@pytest.fixture
def start(tmp_path):
    """A bare supernet for stage 2 to start from."""
    model = apis.load_supernet(ROOT / 'configs' / 'digits_supernet.py')
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'start.pth')


@pytest.mark.usefixtures('start')
def test_resume_with_nothing_to_resume_starts_from_load_from(digits_root, tmp_path):
    assert 'Load checkpoint from' in run_tool(digits_root, tmp_path, '--resume')
    assert 'resumed epoch: 1' in run_tool(digits_root, tmp_path, '--resume')


@pytest.mark.usefixtures('start')
def test_options_of_the_tool(digits_root, tmp_path):
    log = run_tool(digits_root, tmp_path, '--amp', '--no-validate')
    assert "amp='bfloat16'" in log
    assert 'Epoch(val)' not in log


@pytest.mark.full
def test_the_log_of_a_start_tells_environment_and_config(digits_config, monkeypatch):
    monkeypatch.undo()  # of what conftest leaves out
    cfg = digits_config('supernet')
    runner = Runner.from_cfg(cfg)
    log = next(Path(cfg.work_dir).glob('*/*.log')).read_text()
    assert f'PyTorch: {torch.__version__}' in log
    assert f'\n{cfg.pretty_text}\n' in log
    assert Config.fromstring(cfg.pretty_text, '.py').to_dict() == runner.cfg.to_dict()


def test_average_weights_are_the_ones_validated(digits_config):
    """EMA swaps weights before a validation; the merge must see them."""
    cfg = digits_config('moLE', images=32, options={'train_cfg.val_interval': 2})
    cfg.custom_hooks = [*cfg.custom_hooks[:1], dict(type='EMAHook', momentum=0.1)]
    runner = Runner.from_cfg(cfg)
    for layer in runner.model.backbone.mole_layers():
        torch.nn.init.normal_(layer.lora_b, std=0.1)
    seen, merge = [], runner.model.merge_experts

    def spy(*args):
        if not runner.model.training:
            seen.append(runner.model.backbone.blocks[0].fc1.lora_b.detach().clone())
        merge(*args)

    runner.model.merge_experts = spy
    runner.train()
    ema = next(hook for hook in runner.hooks if type(hook).__name__ == 'EMAHook').ema_model.module
    trained = runner.model.backbone.blocks[0].fc1.lora_b
    assert torch.equal(seen[-1], ema.backbone.blocks[0].fc1.lora_b)
    assert not torch.equal(seen[-1], trained)


def test_no_merge_outlives_an_iteration(digits_config):
    runner = Runner.from_cfg(digits_config('moLE', images=32))
    merged, call_hook = [], runner.call_hook

    def spy(hook, **kwargs):
        call_hook(hook, **kwargs)
        if hook in ('after_train_iter', 'after_val_epoch'):
            merged.append(runner.model.is_merged)

    runner.call_hook = spy
    runner.train()
    assert merged
    assert not any(merged)
