"""Mixed precision that also runs without a GPU."""

from contextlib import contextmanager

import torch
from mmengine.device import get_device
from mmengine.optim import OptimWrapper

from ...registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """Runs the forward under ``torch.autocast`` in bfloat16, on CPU or GPU.

    bfloat16 has the range of float32 and needs no loss scaling. Experts are merged before the
    forward, hence in float32. MMEngine's ``AmpOptimWrapper`` refuses CPUs.

    Args:
        **kwargs: As in MMEngine's ``OptimWrapper``.
    """

    @contextmanager
    def optim_context(self, model):
        """Forward context: autocast, and no gradient synchronisation while accumulating."""
        device = get_device()
        with super().optim_context(model), torch.autocast(device, dtype=torch.bfloat16):
            yield
