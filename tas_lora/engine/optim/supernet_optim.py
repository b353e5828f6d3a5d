"""The optimizer wrapper of a supernet: precision, and the gradients of what is not used."""

from contextlib import contextmanager

import torch
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from ...errors import UserError
from ...registry import OPTIM_WRAPPERS
from ...structures.subnet import boolean

_DTYPES = {False: None, True: torch.bfloat16, 'bfloat16': torch.bfloat16, 'float16': torch.float16}
_SCALER = 'loss_scaler'  # in checkpoints


@OPTIM_WRAPPERS.register_module()
class SupernetOptimWrapper(OptimWrapper):
    """MMEngine's ``OptimWrapper`` for a model of which every iteration trains another part.

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
            raise UserError(f'optim_wrapper.amp must be one of {list(_DTYPES)}, got {amp!r}')
        self.dtype = _DTYPES[amp]
        self.set_to_none = boolean(set_to_none, 'optim_wrapper.set_to_none')
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
        super().update_params(loss, step_kwargs, zero_kwargs)
        if self.should_update():
            self.scaler.update()

    def backward(self, loss: Tensor, **kwargs) -> None:
        """Backward of the scaled loss."""
        super().backward(self.scaler.scale(loss), **kwargs)

    def step(self, **kwargs) -> None:
        """Step on unscaled gradients; not at all if one of them is infinite, or none is there."""
        parameters = (p for group in self.optimizer.param_groups for p in group['params'])
        if all(parameter.grad is None for parameter in parameters):  # a router in its warm-up
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
