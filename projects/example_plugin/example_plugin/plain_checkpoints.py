"""Checkpoints that torch 2.6 and newer can load."""

import numpy as np
from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS


@HOOKS.register_module()
class PlainCheckpoints(Hook):
    """Removes from checkpoints what ``torch.load`` refuses by default (``weights_only``).

    MMEngine 0.10 cannot load its own checkpoints: the log's history consists of MMEngine objects,
    and some numbers are NumPy's. A run can be resumed without that history.
    """

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Keep only tensors, numbers and text."""
        hub = checkpoint['message_hub']
        hub['log_scalars'] = {}
        hub['runtime_info'] = {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in hub['runtime_info'].items()
        }
