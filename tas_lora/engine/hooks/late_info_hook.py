"""Losses that are read back when they are logged, not in each iteration."""

import torch
from mmengine.hooks import LoggerHook, RuntimeInfoHook
from torch import Tensor

from ...errors import NonFiniteError
from ...registry import HOOKS
from ..optim import JointOptimWrapper, SupernetOptimWrapper
from ..optim.supernet_optim import bad_step

_STEP_LOSS, _IS_BAD = 'step_loss of the wrapper', 'is_bad of the wrapper'  # no names of losses


@HOOKS.register_module()
class LateInfoHook(RuntimeInfoHook):
    """MMEngine's ``RuntimeInfoHook``, which waits for a GPU only where something is logged.

    Losses stay on the device, and with them whether a step was skipped as a loss or gradient was
    infinite or NaN. All are read at once before a line is logged, at the end of an epoch, and
    before a validation or a checkpoint. On a CPU they are passed on at once, except with fused
    optimizers, which skip steps as on a GPU.

    Raises:
        UserError: When a bad step is read, as from the loop's ``count_bad_step``; with a loop of
            MMEngine's at the first.
    """

    def __init__(self):
        self._kept: list[tuple[int, dict, dict]] = []

    def before_train(self, runner):
        super().before_train(runner)
        if (wrapper := _wrapper_of(runner)) is not None:
            wrapper.is_read_late = True

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        outputs, step = outputs or {}, _take_step(runner)
        if not (self._kept or step or any(map(_is_on_gpu, outputs.values()))):
            super().after_train_iter(runner, batch_idx, data_batch, outputs)
            return
        self._keep(runner, {**outputs, **step})
        intervals = [hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)] or [1]
        is_logged = any(self.every_n_inner_iters(batch_idx, interval) for interval in intervals)
        if is_logged or self.end_of_epoch(runner.train_dataloader, batch_idx):
            self.read_late(runner)

    def after_train_epoch(self, runner):
        self.read_late(runner)

    def before_val(self, runner):
        self.read_late(runner)
        super().before_val(runner)

    def _keep(self, runner, values: dict) -> None:
        values = {k: v.detach() if isinstance(v, Tensor) else v for k, v in values.items()}
        self._kept.append((runner.iter, runner.optim_wrapper.get_lr(), values))

    def read_late(self, runner) -> None:
        """Pass on what was kept, in order; our runner also calls it before each checkpoint."""
        if step := _take_step(runner):  # of an iteration that is not over
            self._keep(runner, step)
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


def _take_step(runner) -> dict[str, Tensor]:
    """What the wrapper has not been asked for yet; empty if it has read that back itself."""
    wrapper = _wrapper_of(runner)
    step = wrapper and wrapper.take_unread()
    return dict(zip((_STEP_LOSS, _IS_BAD), step, strict=True)) if step else {}


def _is_on_gpu(value) -> bool:
    return isinstance(value, Tensor) and value.is_cuda


def _read(values: list) -> list[float]:
    """Numbers, of which those on a GPU come in one copy."""
    on_gpu = [value.double().reshape(()) for value in values if _is_on_gpu(value)]
    copied = iter(torch.stack(on_gpu).tolist() if on_gpu else ())
    others = (v.item() if isinstance(v, Tensor) else v for v in values if not _is_on_gpu(v))
    return [next(copied if _is_on_gpu(value) else others) for value in values]


def _refuse(runner, error: Exception, iteration: int, rates: dict) -> None:
    count = getattr(runner.train_loop, 'count_bad_step', None)  # a loop of MMEngine's has none
    if count is None:
        rates = {name: rate[0] for name, rate in rates.items()}
        raise NonFiniteError(f'{error}: iteration {iteration}, learning rates {rates}')
    count(error, iteration, rates)
