"""Checkpoints that torch 2.6 and newer will read."""

import numpy as np
from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS


@HOOKS.register_module()
class PlainCheckpoints(Hook):
    """Leaves out of checkpoints what ``torch.load`` refuses by default (``weights_only``).

    MMEngine 0.10 cannot load what it has written itself: the history of the log is made of objects
    of its own, and some numbers are NumPy's. Without the former a run can be resumed all the same.
    """

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Leave tensors, numbers and text."""
        hub = checkpoint['message_hub']
        hub['log_scalars'] = {}
        hub['runtime_info'] = {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in hub['runtime_info'].items()
        }
