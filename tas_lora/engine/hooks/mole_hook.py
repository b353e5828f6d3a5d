"""When experts are merged; how is the model's business."""

import torch
from mmengine.hooks import Hook

from ...checks import natural
from ...registry import HOOKS
from ..model_access import supernet_of


@HOOKS.register_module()
class MoLEHook(Hook):
    """Merges the experts for each training iteration, and once per evaluated subnet.

    In training the merge keeps its graph, so that gradients reach experts and router, and is
    dropped behind the iteration. An evaluation merges at the first batch of a subnet, after any
    other hook (such as EMA) has put its weights in place.

    Args:
        router_warmup_epochs: Epochs at the start in which the router is frozen (TAS-LoRA: 5).
    """

    priority = 'LOW'  # after hooks that sample subnets or swap weights

    def __init__(self, router_warmup_epochs: int = 0):
        self.router_warmup_epochs = natural(router_warmup_epochs, 'router_warmup_epochs')

    def before_train_epoch(self, runner):
        # Without a gradient its optimizer does not move it.
        router = supernet_of(runner).router
        if router is not None:
            router.requires_grad_(runner.epoch >= self.router_warmup_epochs)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        supernet_of(runner).merge_experts()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        supernet_of(runner).unmerge_experts()

    def _merge_once(self, runner, batch_idx, data_batch=None):
        model = supernet_of(runner)
        if not model.is_merged:
            with torch.no_grad():
                model.merge_experts()

    before_val_iter = _merge_once
    before_test_iter = _merge_once

    def _unmerge(self, runner, metrics=None):
        supernet_of(runner).unmerge_experts()

    after_val_epoch = _unmerge
    after_test_epoch = _unmerge
