"""Strategies of supernet training: the sandwich rule, and which gradients a step sees."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, call_tool, runner_of
from mmengine.runner import Runner

from tas_lora import UserError
from tas_lora.config import load_config
from tas_lora.engine import MoLEHook

SANDWICH = dict(type='tas_lora.SandwichRule', num_random=2)


def batch_of(runner) -> dict:
    return next(iter(runner.train_dataloader))


def reference_step(model, subnets, batch, lr: float, distill: bool) -> dict:
    """Weights after one SGD step on the sum of all losses, written down plainly."""
    model = deepcopy(model)
    images = model.data_preprocessor(deepcopy(batch), training=True)['inputs']
    labels = torch.cat([sample.gt_label for sample in batch['data_samples']])
    logits = []
    for subnet in subnets:
        model.set_subnet(subnet)
        logits.append(model(images, mode='tensor'))
    losses = [F.cross_entropy(logits[0], labels)]
    teacher = logits[0].detach().softmax(-1)
    for student in logits[1:]:
        soft = -(teacher * student.log_softmax(-1)).sum(-1).mean()
        losses.append(soft if distill else F.cross_entropy(student, labels))
    sum(losses).backward()
    return {
        name: p.detach() - (0 if p.grad is None else lr * p.grad)
        for name, p in model.named_parameters()
    }


@pytest.mark.parametrize('distill', [True, False])
def test_sandwich_against_the_sum_of_its_losses(digits_config, distill):
    cfg = digits_config('supernet', images=64)
    cfg.train_cfg.strategy = dict(**SANDWICH, distill=distill)
    cfg.optim_wrapper.optimizer = dict(type='SGD', lr=0.5)
    runner = runner_of(cfg)
    loop, batch = runner.train_loop, batch_of(runner)
    subnets = loop.draw(0)
    assert subnets[:2] == [loop.space.largest(), loop.space.smallest()]
    assert len(subnets) == 4
    expected = reference_step(runner.model, subnets, batch, 0.5, distill)
    loop.run_iter(0, batch)
    for name, value in runner.model.named_parameters():
        assert (value - expected[name]).abs().max() < 1e-5, name


def test_sandwich_logs_the_loss_of_each_subnet(digits_config):
    cfg = digits_config('supernet', images=32)
    cfg.train_cfg.strategy = dict(type='tas_lora.SandwichRule', num_random=1)
    runner = Runner.from_cfg(cfg)
    runner.train()
    scalars = runner.message_hub.log_scalars
    parts = [scalars[f'train/loss_{n}'].current() for n in ('largest', 'smallest', 'random0')]
    assert scalars['train/loss'].current() == pytest.approx(sum(parts), rel=1e-5)


def test_sandwich_of_experts_keeps_the_router_frozen_in_its_warmup(digits_config):
    cfg = digits_config('moLE', images=64, options={'custom_hooks.0.router_warmup_epochs': 1})
    cfg.train_cfg.strategy = SANDWICH
    runner = runner_of(cfg)
    for layer in runner.model.backbone.mole_layers():  # at 0 the router has no gradient
        torch.nn.init.normal_(layer.lora_b, std=0.1)
    hook = next(h for h in runner.hooks if isinstance(h, MoLEHook))
    before = deepcopy(runner.model.state_dict())
    for epoch, moves in ((0, {'backbone'}), (1, {'backbone', 'router'})):
        runner.train_loop._epoch = epoch
        hook.before_train_epoch(runner)
        runner.train_loop.run_iter(0, batch_of(runner))
        state = runner.model.state_dict()
        assert {n.split('.')[0] for n in state if not torch.equal(state[n], before[n])} == moves
    assert all(
        'lora_' in n or 'router.' in n for n in state if not torch.equal(state[n], before[n])
    )


def test_strategies_that_do_not_exist_or_fit(digits_config):
    cfg = digits_config('supernet')
    choices = 'choose from .*tas_lora.SandwichRule.*tas_lora.UniformSampling'
    for strategy, message in (
        (dict(type='tas_lora.Sandwich'), choices),
        (dict(type='tas_lora.RandomGroups'), choices),
        (dict(), choices),
        ('SandwichRule', choices),
        (dict(type='tas_lora.SandwichRule', distill='maybe'), 'distill must be True or False'),
        (dict(type='tas_lora.SandwichRule', num_random=-1), 'num_random must be an integer from 0'),
    ):
        cfg.train_cfg.strategy = strategy
        with pytest.raises(UserError, match=message):
            Runner.from_cfg(deepcopy(cfg)).train_loop  # noqa: B018
    cfg.train_cfg.strategy = SANDWICH
    cfg.optim_wrapper.accumulative_counts = 2
    with pytest.raises(UserError, match='accumulative_counts'):
        Runner.from_cfg(cfg).train_loop  # noqa: B018


@pytest.mark.parametrize(
    ('strategy', 'message'),
    [
        (['type=tas_lora.Sandwhich'], "dict(type='tas_lora.SandwichRule')"),
        (['type=tas_lora.SandwichRule', 'num_randoms=3'], "did you mean 'num_random'?"),
    ],
)
def test_a_misspelt_strategy_is_one_line(digits_root, tmp_path, capsys, strategy, message):
    config = ROOT / 'configs' / 'digits_supernet.py'
    options = [
        *(f'train_cfg.strategy.{option}' for option in strategy),
        f'train_dataloader.dataset.dataset.dataset.data_root={digits_root}',
        f'val_dataloader.dataset.dataset.data_root={digits_root}',
    ]
    code = call_tool(
        'train.py', config, '--check-only', '--work-dir', tmp_path, '--cfg-options', *options
    )
    lines = capsys.readouterr().err.strip().splitlines()
    assert code == 2
    assert [message in line for line in lines if line.startswith('error')] == [True]


@pytest.mark.parametrize('set_to_none', [True, False])
def test_gradients_of_skipped_blocks(digits_config, set_to_none):
    """torch 1.7 left zeros where torch 2 leaves None: AdamW moves what is skipped, or not."""
    cfg = digits_config('supernet', images=64)
    cfg.optim_wrapper.set_to_none = set_to_none
    runner = runner_of(cfg)
    loop, space = runner.train_loop, runner.train_loop.space
    weight = runner.model.backbone.blocks[3].fc1.weight  # of four blocks
    reference = torch.nn.Parameter(weight.detach().clone())
    optimizer = torch.optim.AdamW([reference], lr=4e-3, weight_decay=0.05)
    for i, subnet in enumerate((space.largest(), space.smallest(), space.smallest())):
        loop.draw = lambda _, subnet=subnet: [subnet]
        gradients = []
        handle = weight.register_hook(lambda g, seen=gradients: seen.append(g.clone()))
        loop.run_iter(i, batch_of(runner))
        handle.remove()
        reference.grad = gradients[0] if gradients else torch.zeros_like(reference)
        if gradients or not set_to_none:
            optimizer.step()
        assert bool(gradients) == (i == 0)
        assert (weight - reference).abs().max() < 1e-6


def test_relative_tables_without_weight_decay_by_an_option():
    key = 'optim_wrapper.paramwise_cfg.custom_keys.rel_pos.decay_mult'
    decayed = []
    for options in ({}, {key: 0.0}):
        cfg = load_config(ROOT / 'configs' / 'autoformer_t_supernet.py', options)
        cfg.model.backbone.arch = dict(embed_dim=64, num_heads=[1], mlp_ratio=[1.0])
        cfg.model.pop('train_cfg')
        runner = Runner(cfg.model, work_dir='/tmp', default_scope='mmpretrain')
        optimizer = runner.build_optim_wrapper(cfg.optim_wrapper).optimizer
        decays = {p: g['weight_decay'] for g in optimizer.param_groups for p in g['params']}
        named = runner.model.named_parameters()
        decayed.append({n.split('.')[-2] for n, p in named if decays[p] and 'attn.rel' in n})
    assert decayed == [{'rel_pos_k', 'rel_pos_v'}, set()]
