"""MMEngine's runner, with safe loading of checkpoints and early, clear errors."""

from mmengine.runner import BaseLoop, Runner

from ...errors import UserError, blame
from ...models.checkpoint import adapt_to_start
from ...models.safe_load import read_checkpoint, read_state_dict
from ..model_access import supernet_of
from .resumable_train_loop import ResumableTrainLoop
from .run_files import forget_starts, newest_whole


class SupernetRunner(Runner):
    """The runner that the tools use.

    Its ``load_from`` accepts our checkpoints, official AutoFormer files and exported subnets, and
    training may start from weights for other images or classes. It does not use MMEngine's own
    loading, which refuses its own log buffers in torch 2.6 and newer, unpickles whatever comes
    from an address, and executes a config found in a checkpoint.
    """

    def prepare(self, *stages: str) -> None:
        """Build what the stages 'train', 'val' and 'test' need, before anything runs.

        Raises:
            UserError: Naming the part of the config that cannot be built.
        """
        if 'train' in stages:
            with blame('train_cfg or train_dataloader cannot be built'):
                self._train_loop = self.build_train_loop(self._train_loop)
            with blame('optim_wrapper cannot be built'):
                self.optim_wrapper = self.build_optim_wrapper(self.optim_wrapper)
                self.scale_lr(self.optim_wrapper, self.auto_scale_lr)
                # Done; train() would refuse to, once schedulers are built.
                self.auto_scale_lr = None
            with blame('param_scheduler cannot be built'):
                if self.param_schedulers is not None:
                    self.param_schedulers = self.build_param_scheduler(self.param_schedulers)
        if 'val' in stages and self._val_loop is not None:
            with blame('val_cfg, val_dataloader or val_evaluator cannot be built'):
                self._val_loop = self.build_val_loop(self._val_loop)
        if 'test' in stages:
            with blame('test_cfg, test_dataloader or test_evaluator cannot be built'):
                self._test_loop = self.build_test_loop(self._test_loop)

    def load_or_resume(self) -> None:
        """Load or resume, as the config says; with ``resume`` alone from the newest checkpoint."""
        if self._resume and self._load_from is None:
            found = newest_whole(self.work_dir)
            self._resume, self._load_from = found is not None, found and str(found)
        super().load_or_resume()
        is_training = isinstance(self._train_loop, BaseLoop)
        if is_training and not isinstance(self._train_loop, ResumableTrainLoop):
            forget_starts(self.work_dir)

    def load_checkpoint(self, filename: str, map_location='cpu', **kwargs) -> dict:
        """Load weights from a file or an http(s) address; when resuming, the whole checkpoint."""
        model = supernet_of(self)
        if self._resume:
            checkpoint = read_checkpoint(filename)
            keys = set(checkpoint) if isinstance(checkpoint, dict) else set()
            if not {'meta', 'optimizer', 'message_hub'} <= keys:
                raise UserError(
                    f'{filename} holds only weights; start from it with load_from, without resume'
                )
            checkpoint['meta'].pop('config', None)  # `Runner.resume` would execute it as Python
        else:
            checkpoint = dict(state_dict=read_state_dict(filename))
            if isinstance(self._train_loop, BaseLoop):  # it is built: training is about to start
                adapt_to_start(checkpoint['state_dict'], model.state_dict(keep_vars=True))
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        model.load_state_dict(checkpoint['state_dict'])
        self._has_loaded = True
        self.logger.info(f'Load checkpoint from {filename}')
        return checkpoint

    def resume(self, filename: str, *args, **kwargs) -> None:
        """Resume from a checkpoint of the same config."""
        with blame(f'cannot resume from {filename}; it must be a checkpoint of this config'):
            super().resume(filename, *args, **kwargs)
