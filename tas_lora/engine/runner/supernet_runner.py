"""MMEngine's runner with safe reading of checkpoints and early, clear errors."""

from mmengine.runner import BaseLoop, Runner

from ...errors import UserError, blame
from ...models.checkpoint import adapt_to_start
from ...models.safe_load import read_checkpoint, read_state_dict
from ..model_access import supernet_of


class SupernetRunner(Runner):
    """The runner behind the tools.

    Its ``load_from`` takes official AutoFormer files and exported subnets as well as our
    checkpoints, and a training may start from weights for other images or classes. MMEngine's
    own loading refuses its log buffers under torch 2.6 and newer, unpickles anything that comes
    from an address, and runs a config that stands in a checkpoint; none of it is used here.
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
        """Load weights, from a file or an http(s) address; when resuming, the whole checkpoint."""
        model = supernet_of(self)
        if self._resume:
            checkpoint = _resumable(filename)
        else:
            checkpoint = dict(state_dict=read_state_dict(filename))
        # With a loop that is built, this is the start of a training.
        if isinstance(self._train_loop, BaseLoop) and not self._resume:
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


def _resumable(filename: str) -> dict:
    """A checkpoint of a training, without what MMEngine would run."""
    checkpoint = read_checkpoint(filename)
    if not isinstance(checkpoint, dict) or not {'meta', 'optimizer', 'message_hub'} <= set(
        checkpoint
    ):
        raise UserError(
            f'{filename} holds weights alone; start from it by load_from without resume'
        )
    checkpoint['meta'].pop('config', None)  # `Runner.resume` takes it for Python and runs it
    return checkpoint
