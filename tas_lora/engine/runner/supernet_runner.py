"""MMEngine's runner with safe reading of checkpoints and early, clear errors."""

import torch
from mmengine.runner import BaseLoop, Runner

from ...errors import blame
from ...models.checkpoint import adapt_to_start, read_state_dict, resume_globals
from ..of_runner import supernet_of


class SupernetRunner(Runner):
    """The runner behind the tools.

    Its ``load_from`` takes official AutoFormer files and exported subnets as well as our
    checkpoints, and a training may start from weights for other images or classes. MMEngine
    loads by torch's ``weights_only`` default, which refuses MMEngine's own log buffers and
    AutoFormer's stored arguments; here exactly these are let through, for the one load.
    """

    def prepare(self, *stages: str) -> None:
        """Build what the stages 'train', 'val', 'test' need, before anything is run.

        Raises:
            UserError: Naming the part of the config that cannot be built.
        """
        if 'train' in stages:
            with blame('train_cfg or train_dataloader cannot be built'):
                self._train_loop = self.build_train_loop(self._train_loop)
            with blame('optim_wrapper cannot be built'):
                self.optim_wrapper = self.build_optim_wrapper(self.optim_wrapper)
                self.scale_lr(self.optim_wrapper, self.auto_scale_lr)
                self.auto_scale_lr = None  # done; train() would refuse to, behind the next line
            with blame('param_scheduler cannot be built'):
                if self.param_schedulers is not None:
                    self.param_schedulers = self.build_param_scheduler(self.param_schedulers)
        if 'val' in stages and self._val_loop is not None:
            with blame('val_cfg, val_dataloader or val_evaluator cannot be built'):
                self._val_loop = self.build_val_loop(self._val_loop)
        if 'test' in stages:
            with blame('test_cfg, test_dataloader or test_evaluator cannot be built'):
                self._test_loop = self.build_test_loop(self._test_loop)

    def load_checkpoint(self, filename: str, map_location='cpu', **kwargs) -> dict:
        """Load weights; when resuming, the whole checkpoint as MMEngine does."""
        if self._resume or '://' in filename:
            with torch.serialization.safe_globals(resume_globals()):
                return super().load_checkpoint(filename, map_location, **kwargs)
        checkpoint, model = dict(state_dict=read_state_dict(filename)), supernet_of(self)
        if isinstance(self._train_loop, BaseLoop):  # built, so this is the start of a training
            adapt_to_start(checkpoint['state_dict'], model.state_dict(keep_vars=True))
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        model.load_state_dict(checkpoint['state_dict'])
        self._has_loaded = True
        self.logger.info(f'Load checkpoint from {filename}')
        return checkpoint

    def resume(self, filename: str, *args, **kwargs) -> None:
        """Go on from a checkpoint of the same config."""
        with blame(f'cannot resume from {filename}; it must be a checkpoint of this config'):
            super().resume(filename, *args, **kwargs)
