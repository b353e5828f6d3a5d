"""Losses that are read back when they are logged, not in each iteration."""

import torch
from mmengine.hooks import LoggerHook, RuntimeInfoHook
from torch import Tensor

from ...registry import HOOKS
from ..optim import JointOptimWrapper, SupernetOptimWrapper
from ..optim.supernet_optim import bad_step

_STEP_LOSS, _IS_BAD = 'step_loss of the wrapper', 'is_bad of the wrapper'  # no names of losses


@HOOKS.register_module()
class LateInfoHook(RuntimeInfoHook):
    """MMEngine's ``RuntimeInfoHook``, which waits for a GPU only where something is logged.

    Losses stay on the device, and with them whether a step was skipped as a loss or gradient was
    infinite or NaN. All are read at once before a line is logged, at the end of an epoch, and
    before a checkpoint is written. On a CPU they are passed on at once.

    Raises:
        UserError: When a bad step is read, as from the loop's ``count_bad_step``.
    """

    def __init__(self):
        self._kept: list[tuple[int, dict, dict]] = []

    def before_train(self, runner):
        super().before_train(runner)
        if (wrapper := _wrapper_of(runner)) is not None:
            wrapper.is_read_late = True

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        wrapper, outputs = _wrapper_of(runner), dict(outputs or {})
        step = wrapper and wrapper.take_unread()
        is_on_gpu = any(isinstance(value, Tensor) and value.is_cuda for value in outputs.values())
        if step is None and not is_on_gpu and not self._kept:
            super().after_train_iter(runner, batch_idx, data_batch, outputs)
            return
        if step is not None:
            outputs |= zip((_STEP_LOSS, _IS_BAD), step, strict=True)
        values = {k: v.detach() if isinstance(v, Tensor) else v for k, v in outputs.items()}
        self._kept.append((runner.iter, runner.optim_wrapper.get_lr(), values))
        interval = next((hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)), 1)
        is_last = self.end_of_epoch(runner.train_dataloader, batch_idx)
        if is_last or self.every_n_inner_iters(batch_idx, interval):
            self.read_late(runner)

    def after_train_epoch(self, runner):
        self.read_late(runner)

    def read_late(self, runner) -> None:
        """Pass on what was kept, in order; our runner also calls it before each checkpoint."""
        kept, self._kept = self._kept, []
        numbers = iter(_read([value for *_, values in kept for value in values.values()]))
        for iteration, rates, values in kept:
            values = {name: next(numbers) for name in values}
            loss = values.pop(_STEP_LOSS, None)
            if values.pop(_IS_BAD, False):
                _refuse(runner, bad_step(loss), iteration, rates)
            else:
                super().after_train_iter(runner, 0, None, values)


def _wrapper_of(runner) -> SupernetOptimWrapper | None:
    """The wrapper that may skip steps; None if it is not ours."""
    wrapper = runner.optim_wrapper
    if isinstance(wrapper, JointOptimWrapper):
        return wrapper.first
    return wrapper if isinstance(wrapper, SupernetOptimWrapper) else None


def _read(values: list) -> list[float]:
    """Numbers, of which those on the device come in one copy."""
    tensors = [v.double().reshape(()) for v in values if isinstance(v, Tensor)]
    found = iter(torch.stack(tensors).tolist() if tensors else ())
    return [next(found) if isinstance(v, Tensor) else v for v in values]


def _refuse(runner, error: Exception, iteration: int, rates: dict) -> None:
    count = getattr(runner.train_loop, 'count_bad_step', None)  # a loop of MMEngine's has none
    if count is None:
        raise error
    count(error, iteration, rates)
