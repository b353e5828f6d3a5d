"""MMEngine's runner, with safe loading of checkpoints and early, clear errors."""

import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.logging import MMLogger
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop, Runner

from ...datasets.agreement import (
    check_built,
    check_recorded_draws,
    check_same_classes,
    check_sources,
    trained_classes,
)
from ...errors import UserError, blame, printable
from ...models import SupernetClassifier
from ...models.checkpoint import adapt_to_start
from ...models.safe_load import read_checkpoint, weights_in
from ..model_access import supernet_of
from .label_check import check_dataset, check_metrics
from .resumable_train_loop import ResumableTrainLoop
from .resume_check import checkpoint_hook, make_resumable, recorded_run
from .run_files import checkpoint_folder, checkpoint_or_first_start, forget_starts

_ESCAPE = ('val_cfg', 'search_on_training_images')


class SupernetRunner(Runner):
    """The runner that the tools use.

    Its ``load_from`` accepts our checkpoints, official AutoFormer files and exported subnets, and
    training may start from weights for other images or classes. It does not use MMEngine's own
    loading, which refuses its own log buffers in torch 2.6 and newer, unpickles whatever comes
    from an address, and executes a config found in a checkpoint.
    """

    _classes_of_weights: Mapping = MappingProxyType({})  # what the loaded checkpoint says of them

    def build_logger(self, *args, **kwargs) -> MMLogger:
        """Build MMEngine's logger; texts from files cannot steer the terminal it writes to."""
        logger = super().build_logger(*args, **kwargs)
        logger.addFilter(_escape)
        return logger

    def register_default_hooks(self, hooks: dict | None = None) -> None:
        """MMEngine's hooks, of which one reads losses back late, unless the config names others."""
        super().register_default_hooks(
            dict(runtime_info=dict(type='tas_lora.LateInfoHook')) | (hooks or {})
        )

    def save_checkpoint(self, *args, **kwargs) -> None:
        """Write a checkpoint, after all that is known of the steps so far has been read."""
        self.call_hook('read_late')
        super().save_checkpoint(*args, **kwargs)

    def dump_config(self) -> None:
        """Write the config to the work directory; not through a link that a copy of one holds."""
        for path in Path(self.work_dir).glob('*.py'):
            if path.is_symlink():
                path.unlink()
        super().dump_config()

    def prepare(self, *stages: str) -> None:
        """Build what the stages 'train', 'val' and 'test' need, and check their data.

        Raises:
            UserError: Naming the part of the config that cannot be built, or the data set that
                does not mean what its config says.
        """
        if self._val_loop is None:
            stages = tuple(stage for stage in stages if stage != 'val')
        check_sources(self.cfg, [f'{stage}_dataloader' for stage in stages])
        for stage in stages:
            self._build(stage)
        strategy = getattr(self._train_loop, 'strategy', None)
        check_built(self.cfg, self._datasets(), getattr(strategy, 'needs_labels', True))
        self._compare_classes()
        for stage in stages:
            self._check_labels(stage)

    def _build(self, stage: str) -> None:
        """Build the loop of a stage and, to train, what steps the weights."""
        evaluator = '' if stage == 'train' else f' or {stage}_evaluator'
        joint = ' or' if stage == 'train' else ','
        with blame(f'{stage}_cfg{joint} {stage}_dataloader{evaluator} cannot be built'):
            loop = getattr(self, f'{stage}_loop')  # built on first access
            _check_batches(loop.dataloader, f'{stage}_dataloader')
        if stage != 'train':
            return
        with blame('optim_wrapper cannot be built'):
            self.optim_wrapper = self.build_optim_wrapper(self.optim_wrapper)
            self.scale_lr(self.optim_wrapper, self.auto_scale_lr)
            # Done; train() would refuse to, once schedulers are built.
            self.auto_scale_lr = None
        with blame('param_scheduler cannot be built'):
            if self.param_schedulers is not None:
                self.param_schedulers = self.build_param_scheduler(self.param_schedulers)

    def _check_labels(self, stage: str) -> None:
        """Refuse data and metrics that do not suit the head of a supernet."""
        loop = getattr(self, f'_{stage}_loop')
        model = self.model.module if is_model_wrapper(self.model) else self.model
        if loop is None or not isinstance(model, SupernetClassifier):
            return
        check_dataset(model, loop.dataloader.dataset, f'{stage}_dataloader')
        if stage != 'train':
            check_metrics(model, loop.evaluator, f'{stage}_evaluator')

    def load_or_resume(self) -> None:
        """Load or resume, as the config says; with ``resume`` alone from the newest checkpoint."""
        if not self._has_loaded:
            self._settle_start()
        super().load_or_resume()
        is_training = isinstance(self._train_loop, BaseLoop)
        if is_training and not isinstance(self._train_loop, ResumableTrainLoop):
            forget_starts(self.work_dir)

    def _settle_start(self) -> None:
        """Settle what to load: the first process chooses for all, that may see other files."""
        if self._resume and self._load_from is None and is_main_process():
            hook = checkpoint_hook(self)
            folder = checkpoint_folder(self.work_dir, hook and hook.out_dir)
            allow_changes = (self.cfg.get('train_cfg') or {}).get('allow_changes', False)
            found = checkpoint_or_first_start(self.work_dir, folder, None, allow_changes)
            self._resume, self._load_from = found is not None, found and str(found)
        chosen = [self._resume, self._load_from]
        broadcast_object_list(chosen)
        self._resume, self._load_from = chosen

    def load_checkpoint(self, filename: str, map_location='cpu', **kwargs) -> dict:
        """Load weights from a file or an http(s) address; when resuming, the whole checkpoint."""
        model = supernet_of(self)
        if self._resume:
            checkpoint = read_checkpoint(filename)
            make_resumable(checkpoint, self, filename)
        else:
            checkpoint = read_checkpoint(filename)
            self._check_data_of(checkpoint)
            checkpoint = dict(state_dict=weights_in(checkpoint, filename))
            if self._trains():
                adapt_to_start(checkpoint['state_dict'], model.state_dict(keep_vars=True))
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        model.load_state_dict(checkpoint['state_dict'])
        self._has_loaded = True
        self.logger.info(f'Load checkpoint from {filename}')
        return checkpoint

    def _trains(self) -> bool:
        """Whether the loop of the training is built: it is about to start."""
        return isinstance(self._train_loop, BaseLoop)

    def _datasets(self) -> dict[str, object]:
        """The data sets of the loops that are built, by name of the dataloader."""
        loops = dict(train=self._train_loop, val=self._val_loop, test=self._test_loop)
        return {
            f'{stage}_dataloader': loop.dataloader.dataset
            for stage, loop in loops.items()
            if isinstance(loop, BaseLoop)
        }

    def _check_data_of(self, checkpoint: object) -> None:
        """Compare the data that a checkpoint was trained on with those of this run."""
        self._classes_of_weights = trained_classes(checkpoint)
        self._compare_classes()
        loops, draws = dict(self.cfg), recorded_run(checkpoint)
        option = ('train_cfg', 'allow_changes') if self._trains() else _ESCAPE
        held_out = isinstance(self._val_loop, BaseLoop) and self.cfg.val_dataloader
        if held_out and not (loops.get(option[0]) or {}).get(option[1]):
            escape = f'set {".".join(option)}=True if you know what you are doing'
            check_recorded_draws(draws, held_out, escape, splits_only=self._trains())

    def _compare_classes(self) -> None:
        """Refuse to evaluate weights on other classes; a training may start from any."""
        if self._trains() or not self._classes_of_weights:
            return
        for name, dataset in self._datasets().items():
            classes = getattr(dataset, 'metainfo', {})
            check_same_classes('the checkpoint', self._classes_of_weights, name, classes)

    def resume(self, filename: str, *args, **kwargs) -> None:
        """Resume from a checkpoint of the same config."""
        with blame(f'cannot resume from {filename}; it must be a checkpoint of this config'):
            super().resume(filename, *args, **kwargs)


def _escape(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(record.getMessage()), ()
    return True


def _check_batches(dataloader, field: str) -> None:
    """Refuse a dataloader without a batch, which would train or evaluate nothing."""
    if len(dataloader):
        return
    batches = dataloader.batch_sampler
    size = getattr(getattr(batches, 'inner', batches), 'batch_size', 'more')
    raise UserError(
        f'has no batch: {len(batches.sampler)} images are there for a process, and {size} are in '
        'a batch; lower batch_size, or set drop_last=False',
        field,
    )
