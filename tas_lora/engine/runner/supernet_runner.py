"""MMEngine's runner with safe reading of checkpoints."""

import torch
from mmengine.runner import Runner

from ...models.checkpoint import read_state_dict, resume_globals
from ...registry import RUNNERS
from ..hooks.mole_hook import supernet_of


@RUNNERS.register_module()
class SupernetRunner(Runner):
    """A runner whose ``load_from`` takes official AutoFormer files as well as ours.

    MMEngine loads by torch's ``weights_only`` default, which refuses MMEngine's own log buffers
    and AutoFormer's stored arguments. Here exactly these are let through, for the one load.
    """

    def load_checkpoint(self, filename: str, map_location='cpu', **kwargs) -> dict:
        """Load weights; when resuming, the whole checkpoint as MMEngine does."""
        if self._resume or '://' in filename:
            with torch.serialization.safe_globals(resume_globals()):
                return super().load_checkpoint(filename, map_location, **kwargs)
        checkpoint = dict(state_dict=read_state_dict(filename))
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        supernet_of(self).load_state_dict(checkpoint['state_dict'])
        self._has_loaded = True
        self.logger.info(f'Load checkpoint from {filename}')
        return checkpoint
