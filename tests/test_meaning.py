"""A training that does not do what its config seems to say is refused, or says so, at the start."""

import pytest
import torch

from tas_lora import UserError, apis

PLAIN = dict(by_epoch=True, max_epochs=2)  # as in MMPretrain
BY_ITERATION = dict(type='IterBasedTrainLoop', max_iters=5)
ONE = dict(type='tas_lora.ResumableTrainLoop', max_epochs=2)


def refused(cfg) -> str:
    with pytest.raises(UserError) as error:
        apis.check_training(cfg)
    return str(error.value)


def said(cfg, capsys) -> str:
    apis.check_training(cfg)
    return ' '.join(line for line in capsys.readouterr().out.splitlines() if 'WARNING' in line)


@pytest.mark.parametrize('loop', [PLAIN, BY_ITERATION, ONE])
@pytest.mark.parametrize('stage', ['supernet', 'moLE'])
def test_a_loop_that_draws_no_subnets_for_a_space(digits_config, stage, loop):
    cfg = digits_config(stage)
    cfg.train_cfg = dict(loop)
    line = refused(cfg)
    assert line.startswith('train_cfg has type ')
    assert 'val_cfg.space has 10,368' in line or 'space has ' in line
    assert 'but val_cfg.space has 1,008' in line  # 3 widths, 4^2 + 4^3 + 4^4 blocks
    assert 'tas_lora.SubnetSamplingTrainLoop' in line


def test_one_network_needs_no_draws(digits_config):
    cfg = digits_config('supernet')
    cfg.train_cfg, cfg.val_cfg, cfg.test_cfg = dict(ONE), dict(), dict()
    apis.check_training(cfg)


def test_without_validation_the_space_of_the_test_tells(digits_config):
    cfg = digits_config('supernet')
    cfg.train_cfg = dict(PLAIN)
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    assert 'but test_cfg.space has' in refused(cfg)


@pytest.mark.parametrize(
    'schedule', [None, [dict(type='LinearLR', begin=0, end=1, convert_to_iter_based=True)]]
)
@pytest.mark.parametrize('loader', ['train', 'val'])
def test_a_batch_larger_than_the_set(digits_config, loader, schedule):
    cfg = digits_config('supernet', images=160)
    cfg.param_scheduler = schedule
    cfg[f'{loader}_dataloader'].update(batch_size=512, drop_last=True)
    images = len(apis.prepare_training(digits_config('supernet')).val_loop.dataloader.dataset)
    assert f'{loader}_dataloader has no batch: {160 if loader == "train" else images}' in refused(
        cfg
    )


def test_a_test_without_a_batch(digits_config, tmp_path):
    cfg = digits_config('supernet')
    torch.save(apis.load_supernet(cfg).state_dict(), tmp_path / 'weights.pth')
    cfg.test_dataloader.update(batch_size=512, drop_last=True)
    with pytest.raises(UserError, match='test_dataloader has no batch: 360 images .* 512 are in'):
        apis.evaluate(cfg, tmp_path / 'weights.pth')


@pytest.mark.parametrize(
    'hooks', [[], [dict(type='EMAHook')], [dict(type='tas_lora.MoLEStatsHook')]]
)
def test_a_router_without_the_hook_that_counts_its_warm_up(digits_config, hooks):
    cfg = digits_config('moLE')
    cfg.custom_hooks = hooks
    assert refused(cfg).startswith('custom_hooks has no tas_lora.MoLEHook, but the model trains a')
    cfg.custom_hooks = [*hooks, dict(type='tas_lora.MoLEHook')]
    apis.check_training(cfg)


def test_a_schedule_without_the_hook_that_steps_it(digits_config):
    cfg = digits_config('supernet')
    cfg.default_hooks.param_scheduler = None
    assert refused(cfg).startswith('default_hooks.param_scheduler is None')
    cfg.param_scheduler = None
    apis.check_training(cfg)


@pytest.mark.parametrize(
    ('change', 'text'),
    [
        ({'default_hooks.checkpoint': None}, 'no checkpoint is written'),
        ({'default_hooks': dict(_delete_=True)}, 'not a tas_lora.SafeCheckpointHook'),
        ({'custom_hooks.0.router_warmup_epochs': 2}, 'the router never trains'),
        ({'train_cfg.val_begin': 3}, 'train_cfg.val_begin is 3, max_epochs 2: the training never'),
        (
            {'default_hooks.checkpoint.save_last': False, 'default_hooks.checkpoint.interval': 3},
            'default_hooks.checkpoint writes none by max_epochs 2',
        ),
    ],
)
def test_what_is_odd_but_may_be_meant_is_logged(digits_config, capsys, change, text):
    cfg = digits_config('moLE', options={'custom_hooks.0.router_warmup_epochs': 1})
    usual = said(cfg, capsys)
    cfg.merge_from_dict(change)
    assert text in said(cfg, capsys)
    assert text not in usual
    assert 'load_from is None: experts are trained on a frozen supernet of random' in usual
