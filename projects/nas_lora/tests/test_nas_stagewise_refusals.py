"""What stage-wise training refuses, by its message."""

import re

import pytest
from mmengine.dataset import DefaultSampler
from mmengine.runner import Runner
from stagewise_runs import CONSTRUCTOR, Maps, loader, made, trained
from torch.utils.data import DataLoader, SequentialSampler

from tas_lora.errors import UserError


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(hook=dict(weight_epochs=-1)), 'StageWiseHook.weight_epochs must be an integer from'),
        (dict(hook=dict(alternate='step')), "StageWiseHook.alternate must be 'batch' or 'epoch'"),
        (
            dict(hook=dict(held_out_dataloader=dict(batch_size=2))),
            'StageWiseHook.held_out_dataloader cannot be built: KeyError',
        ),
        (
            dict(alpha=dict(accumulative_counts=2)),
            'optim_wrapper.alpha.accumulative_counts: a t',
        ),
        (dict(alpha=dict(optimizer=3)), 'optim_wrapper.alpha cannot be built: TypeError'),
        (dict(alpha=3), 'optim_wrapper.alpha must be a dict, got 3'),
        (
            dict(weights=dict(type='OptimWrapper')),
            'optim_wrapper.weights.type must be tas_lora.SupernetOptimWrapper',
        ),
        (dict(weights=dict(optimizer=dict(lr=-1))), 'optim_wrapper.weights cannot be built: Value'),
        (
            dict(model=made(choice='uniform')),
            'optim_wrapper: the model has no architecture parameters; adapt it by nas_lora.NASLoRA',
        ),
    ],
)
def test_what_is_refused(tmp_path, options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        trained(tmp_path, 'refused', **options)


def test_other_loops_wrappers_and_batches_are_refused(tmp_path):
    common = dict(
        model=made(),
        work_dir=str(tmp_path),
        custom_hooks=[dict(type='nas_lora.StageWiseHook', weight_epochs=0)],
        default_hooks=dict(logger=None, checkpoint=None),
        log_level='ERROR',
    )
    wrapper = dict(optimizer=dict(type='Adam', lr=1e-3))
    epochs, iterations = dict(by_epoch=True, max_epochs=1), dict(by_epoch=False, max_iters=2)
    for name, loop, wrap, message in (
        ('a', epochs, wrapper, "optim_wrapper: StageWiseHook needs constructor='nas_lora.StageW"),
        ('b', iterations, CONSTRUCTOR, 'train_cfg: StageWiseHook counts epochs; set by_epoch=True'),
    ):
        runner = Runner(
            train_dataloader=loader(4, 0.0),
            train_cfg=loop,
            optim_wrapper=dict(wrap),
            experiment_name=f'{tmp_path.name}-{name}',
            **common,
        )
        with pytest.raises(UserError, match=re.escape(message)):
            runner.train()


@pytest.mark.parametrize(
    ('sampler', 'message'),
    [
        (SequentialSampler, 'sampler must have set_epoch, as .*, got SequentialSampler'),
        (DefaultSampler, 'batches must be dicts, as pseudo_collate makes them, got dict and list'),
    ],
)
def test_held_out_data_of_another_kind_is_refused(tmp_path, sampler, message):
    maps = Maps(4, 1.0)
    data = DataLoader(maps, batch_size=2, sampler=sampler(maps), collate_fn=lambda batch: batch)
    with pytest.raises(UserError, match=message):
        trained(tmp_path, 'held', hook=dict(weight_epochs=0, held_out_dataloader=data))
