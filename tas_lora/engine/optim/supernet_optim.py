"""The optimizer wrapper of a supernet: precision, and gradients of unused parts."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.device import get_device
from mmengine.dist import all_reduce
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from ...checks import boolean
from ...errors import NonFiniteError, UserError
from ...registry import OPTIM_WRAPPERS

_DTYPES = {False: None, True: torch.bfloat16, 'bfloat16': torch.bfloat16, 'float16': torch.float16}
_SCALER = 'loss_scaler'  # in checkpoints
_FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)


@OPTIM_WRAPPERS.register_module()
class SupernetOptimWrapper(OptimWrapper):
    """MMEngine's ``OptimWrapper`` for a model that trains a different part in each iteration.

    If a loss or a gradient is infinite or NaN on any rank, no rank takes the step and all raise
    :class:`NonFiniteError`; the weights stay good. In float16, a bad gradient first lowers the
    loss scale, and raises only when the scale falls below 1.

    On a GPU, torch's Adam, AdamW and SGD use their fused kernels unless ``foreach`` or ``fused``
    says otherwise. These can skip a step without the host: if ``is_read_late`` was set, by a hook
    that will read :meth:`take_unread`, a bad step does not raise and the host waits for nothing.

    Args:
        optimizer: The optimizer.
        amp: Precision of the forward pass, on CPU or GPU: 'bfloat16' (or True) has the range of
            float32, 'float16' uses loss scaling, False is float32. MMEngine's
            ``AmpOptimWrapper`` refuses CPUs. Experts are merged before it, in float32.
        set_to_none: Clear gradients as torch 2 does, so that a skipped block does not change. If
            False, fill them with zeros, as torch 1.7 did for AutoFormer: decay and momentum then
            still change a block that was active once.
        **kwargs: As in MMEngine's ``OptimWrapper``.
    """

    def __init__(self, optimizer, amp: bool | str = False, set_to_none: bool = True, **kwargs):
        super().__init__(optimizer, **kwargs)
        if not isinstance(amp, (bool, str)) or amp not in _DTYPES:
            raise UserError(f'must be one of {list(_DTYPES)}, got {amp!r}', 'amp')
        self.dtype = _DTYPES[amp]
        self.set_to_none = boolean(set_to_none, 'set_to_none')
        self._losses_are_finite = True
        self.is_read_late, self._unread = False, None
        if all(p.is_cuda and p.is_floating_point() for p in self.parameters()):
            _fuse(optimizer)
        # A no-op unless enabled.
        self.scaler = torch.amp.GradScaler(get_device(), enabled=self.dtype is torch.float16)

    @contextmanager
    def optim_context(self, model: nn.Module):
        """Forward context: precision, and no gradient synchronisation while accumulating."""
        with (
            super().optim_context(model),
            torch.autocast(get_device(), dtype=self.dtype, enabled=self.dtype is not None),
        ):
            yield

    def update_params(self, loss: Tensor, step_kwargs=None, zero_kwargs=None) -> None:
        """Run backward; step and clear unless gradients are being accumulated."""
        self.backward(self.scale_loss(loss))
        if self.should_update():
            self.take_step(loss, [self], step_kwargs, zero_kwargs)

    def take_step(self, loss: Tensor, wrappers: list, step_kwargs=None, zero_kwargs=None) -> None:
        """Step and clear all ``wrappers``. This is the first of them, which owns the loss scale.

        Raises:
            NonFiniteError: If a loss or a gradient is infinite or NaN; no wrapper has stepped.
        """
        bad = self._found_bad(wrappers)
        skips = self.is_read_late and all(wrapper.skips_on_device for wrapper in wrappers)
        is_taken = skips or not bad  # read back
        if is_taken:
            for wrapper in wrappers:
                wrapper.step(**(dict(bad=bad) if skips else {}), **(step_kwargs or {}))
        for wrapper in wrappers:
            wrapper.zero_grad(**(zero_kwargs or {}))
        self._losses_are_finite = True
        if skips:
            self._note(loss.detach(), bad)
        if not is_taken:
            raise bad_step(float(loss.detach()))
        self.scaler.update()
        if self.scaler.is_enabled() and self.scaler.get_scale() < 1:  # halved for every bad step
            raise NonFiniteError(
                'the gradients are infinite or NaN at any loss scale; no step was taken'
            )

    @property
    def skips_on_device(self) -> bool:
        """Whether :meth:`step` can be told on the device not to change anything.

        Not if gradients are clipped, as MMEngine reads back their norm, nor with a loss scale or
        SGD's momentum.
        """
        supports = getattr(self.optimizer, '_step_supports_amp_scaling', False)  # as GradScaler
        is_plain = not self.scaler.is_enabled() and not self.clip_grad_kwargs
        groups = self.optimizer.param_groups
        return supports and is_plain and all(g['fused'] and not g.get('momentum') for g in groups)

    def take_unread(self) -> tuple[Tensor, Tensor] | None:
        """Loss of the steps since the last call, and 1 if one was bad and skipped; on the device.

        Of several steps, the loss is that of the first bad one, or of the last.
        """
        unread, self._unread = self._unread, None
        return unread

    def _note(self, loss: Tensor, bad: Tensor) -> None:
        if self._unread is not None:
            earlier, was_bad = self._unread
            loss, bad = torch.where(was_bad > 0, earlier, loss), torch.maximum(was_bad, bad)
        self._unread = loss, bad

    def _found_bad(self, wrappers: list) -> Tensor:
        """1 if a loss or a gradient is infinite or NaN on any rank, else 0.

        With loss scaling only losses: the scaler checks gradients itself.
        """
        finite = torch.as_tensor(self._losses_are_finite, dtype=torch.float32, device=get_device())
        gradients = [
            p.grad for wrapper in wrappers for p in wrapper.parameters() if p.grad is not None
        ]
        if gradients and not self.scaler.is_enabled():
            finite = finite * get_total_norm(gradients).isfinite()
        all_reduce(finite, 'min')
        return 1 - finite

    def parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the optimizer."""
        return (p for group in self.optimizer.param_groups for p in group['params'])

    def backward(self, loss: Tensor, **kwargs) -> None:
        """Run backward on the scaled loss."""
        self._losses_are_finite = loss.detach().isfinite() & self._losses_are_finite
        super().backward(self.scaler.scale(loss), **kwargs)

    def step(self, bad: Tensor | None = None, **kwargs) -> None:
        """Step on unscaled gradients; skip if there are none or, with a scaler, one is infinite.

        Args:
            bad: 1 to skip the step, on the device; needs ``skips_on_device``.
            **kwargs: As in the optimizer's ``step``.
        """
        if all(p.grad is None for p in self.parameters()):  # a router in its warm-up
            return
        self.scaler.unscale_(self.optimizer)
        if self.clip_grad_kwargs:
            self._clip_grad()
        if bad is None:
            self.scaler.step(self.optimizer, **kwargs)
            return
        self.optimizer.found_inf = bad  # as GradScaler does
        self.optimizer.step(**kwargs)
        del self.optimizer.found_inf

    def zero_grad(self, **kwargs) -> None:
        """Clear the gradients."""
        super().zero_grad(**dict(set_to_none=self.set_to_none) | kwargs)

    def state_dict(self) -> dict:
        """State of the optimizer, and the loss scale if there is one."""
        state, scale = super().state_dict(), self.scaler.state_dict()
        return state | {_SCALER: scale} if scale else state

    def load_state_dict(self, state_dict: dict) -> None:
        """Inverse of :meth:`state_dict`."""
        state_dict = dict(state_dict)
        if scale := state_dict.pop(_SCALER, None):
            self.scaler.load_state_dict(scale)
        # A checkpoint of another device has other kernels, which keep their counters elsewhere.
        groups = state_dict['param_groups'] = [dict(g) for g in state_dict['param_groups']]
        for saved, own in zip(groups, self.optimizer.param_groups, strict=False):  # torch counts
            saved |= {name: own[name] for name in ('foreach', 'fused') if name in own}
        super().load_state_dict(state_dict)
        if not self.set_to_none:  # trained parameters have gradients, possibly zeros
            for parameter in self.optimizer.state:
                parameter.grad = torch.zeros_like(parameter)


def bad_step(loss: float) -> NonFiniteError:
    """The error of a step that was not taken."""
    return NonFiniteError(
        f'the loss is {loss:.4g}, and it or a gradient is infinite or NaN; the step was not taken'
    )


def _fuse(optimizer: torch.optim.Optimizer) -> None:
    """Use torch's fused kernels where the config leaves the choice to torch.

    Not with SGD's momentum: if the first step is skipped, torch keeps memory never written to.
    """
    groups, others = optimizer.param_groups, ('momentum', 'differentiable')
    is_plain = not any(group.get(name) for group in groups for name in others)
    is_known = type(optimizer) in _FUSED and is_plain
    if is_known and all(group[name] is None for group in groups for name in ('foreach', 'fused')):
        for group in groups:
            group['fused'] = True
        optimizer._step_supports_amp_scaling = True  # as with fused=True from the start
