"""The optimizer wrapper of a supernet: precision, and the gradients of what is not used."""

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


@OPTIM_WRAPPERS.register_module()
class SupernetOptimWrapper(OptimWrapper):
    """MMEngine's ``OptimWrapper`` for a model of which every iteration trains another part.

    A step on a loss or a gradient that is infinite or NaN is not taken, on any rank, but raised as
    :class:`NonFiniteError`; the weights stay good. In float16 a bad gradient first lowers the loss
    scale, and is raised when that falls below 1.

    Args:
        optimizer: The optimizer.
        amp: Precision of the forward, on CPU or GPU: 'bfloat16' (or True) has the range of
            float32; 'float16' comes with loss scaling; False is float32. MMEngine's
            ``AmpOptimWrapper`` refuses CPUs. Experts are merged before the forward, in float32.
        set_to_none: Clear gradients as torch 2 does, so that a skipped block is left alone.
            With False they are filled with zeros, as torch 1.7 did for AutoFormer: decay and
            momentum then still move a block that was active once.
        **kwargs: As in MMEngine's ``OptimWrapper``.
    """

    def __init__(self, optimizer, amp: bool | str = False, set_to_none: bool = True, **kwargs):
        super().__init__(optimizer, **kwargs)
        if not isinstance(amp, (bool, str)) or amp not in _DTYPES:
            raise UserError(f'must be one of {list(_DTYPES)}, got {amp!r}', 'amp')
        self.dtype = _DTYPES[amp]
        self.set_to_none = boolean(set_to_none, 'set_to_none')
        self._losses_are_finite = True
        # Does nothing unless enabled.
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
        """Backward; step and clear unless gradients are being accumulated."""
        self.backward(self.scale_loss(loss))
        if self.should_update():
            self.take_step(loss, [self], step_kwargs, zero_kwargs)

    def take_step(self, loss: Tensor, wrappers: list, step_kwargs=None, zero_kwargs=None) -> None:
        """Step and clear all ``wrappers``, of which this is the first and keeps the loss scale.

        Raises:
            NonFiniteError: If a loss or a gradient is infinite or NaN: nothing was stepped.
        """
        is_finite = self._is_finite(wrappers)
        if is_finite:
            for wrapper in wrappers:
                wrapper.step(**(step_kwargs or {}))
        for wrapper in wrappers:
            wrapper.zero_grad(**(zero_kwargs or {}))
        self._losses_are_finite = True
        if not is_finite:
            raise NonFiniteError(
                f'the loss is {float(loss):.4g}, and it or a gradient is infinite or NaN; the step '
                'was not taken'
            )
        self.scaler.update()
        if self.scaler.is_enabled() and self.scaler.get_scale() < 1:  # halved for every bad step
            raise NonFiniteError(
                'the gradients are infinite or NaN at any loss scale; no step was taken'
            )

    def _is_finite(self, wrappers: list) -> bool:
        """Whether losses and gradients are, on all ranks; loss scaling minds gradients itself."""
        finite = torch.as_tensor(self._losses_are_finite, dtype=torch.float32, device=get_device())
        gradients = [
            p.grad for wrapper in wrappers for p in wrapper.parameters() if p.grad is not None
        ]
        if gradients and not self.scaler.is_enabled():
            finite = finite * get_total_norm(gradients).isfinite()
        all_reduce(finite, 'min')
        return bool(finite)

    def parameters(self) -> Iterator[nn.Parameter]:
        """What the optimizer trains."""
        return (p for group in self.optimizer.param_groups for p in group['params'])

    def backward(self, loss: Tensor, **kwargs) -> None:
        """Backward of the scaled loss."""
        self._losses_are_finite = loss.detach().isfinite() & self._losses_are_finite
        super().backward(self.scaler.scale(loss), **kwargs)

    def step(self, **kwargs) -> None:
        """Step on unscaled gradients; not at all if one of them is infinite, or none is there."""
        if all(p.grad is None for p in self.parameters()):  # a router in its warm-up
            return
        self.scaler.unscale_(self.optimizer)
        if self.clip_grad_kwargs:
            self._clip_grad()
        self.scaler.step(self.optimizer, **kwargs)

    def zero_grad(self, **kwargs) -> None:
        """Clear the gradients."""
        super().zero_grad(**dict(set_to_none=self.set_to_none) | kwargs)

    def state_dict(self) -> dict:
        """State of the optimizer, and the loss scale where there is one."""
        state, scale = super().state_dict(), self.scaler.state_dict()
        return state | {_SCALER: scale} if scale else state

    def load_state_dict(self, state_dict: dict) -> None:
        """Inverse of :meth:`state_dict`."""
        state_dict = dict(state_dict)
        if scale := state_dict.pop(_SCALER, None):
            self.scaler.load_state_dict(scale)
        super().load_state_dict(state_dict)
        if not self.set_to_none:  # what was trained has a gradient, if only of zeros
            for parameter in self.optimizer.state:
                parameter.grad = torch.zeros_like(parameter)
