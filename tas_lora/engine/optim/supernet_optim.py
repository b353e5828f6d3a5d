"""The optimizer wrapper of a supernet: precision, and the gradients of what is not used."""

from contextlib import contextmanager

import torch
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from torch import nn

from ...registry import OPTIM_WRAPPERS
from ...structures.subnet import boolean


@OPTIM_WRAPPERS.register_module()
class SupernetOptimWrapper(OptimWrapper):
    """MMEngine's ``OptimWrapper`` for a model of which every iteration trains another part.

    Args:
        optimizer: The optimizer.
        amp: Run the forward under ``torch.autocast`` in bfloat16, on CPU or GPU. It has the
            range of float32 and needs no loss scaling; MMEngine's ``AmpOptimWrapper`` refuses
            CPUs. Experts are merged before the forward, hence in float32.
        set_to_none: Clear gradients as torch 2 does, so that a skipped block is left alone.
            With False they are filled with zeros, as torch 1.7 did for AutoFormer: decay and
            momentum then still move a block that was active once.
        **kwargs: As in MMEngine's ``OptimWrapper``.
    """

    def __init__(self, optimizer, amp: bool = False, set_to_none: bool = True, **kwargs):
        super().__init__(optimizer, **kwargs)
        self.amp = boolean(amp, 'optim_wrapper.amp')
        self.set_to_none = boolean(set_to_none, 'optim_wrapper.set_to_none')

    @contextmanager
    def optim_context(self, model: nn.Module):
        """Forward context: precision, and no gradient synchronisation while accumulating."""
        with (
            super().optim_context(model),
            torch.autocast(get_device(), dtype=torch.bfloat16, enabled=self.amp),
        ):
            yield

    def zero_grad(self, **kwargs) -> None:
        """Clear the gradients."""
        super().zero_grad(**dict(set_to_none=self.set_to_none) | kwargs)
