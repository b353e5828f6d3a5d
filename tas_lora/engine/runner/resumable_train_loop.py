"""MMEngine's epoch loop with repeatable iterations."""

from itertools import islice

from mmengine.dist import broadcast_object_list, get_rank
from mmengine.runner import EpochBasedTrainLoop

from ...checks import boolean, natural, positive
from ...datasets.replay import MODEL, UNREADABLE, ReplayBatchSampler, replayable, seed_everything
from ...errors import NonFiniteError, UserError
from ...registry import LOOPS
from .resume_check import check_same_run
from .run_files import note_start

# In the message hub, so also in checkpoints.
_SEED, _LENGTH, _VALIDATED = 'replay_seed', 'epoch_length', 'validated_epoch'
_BAD_IMAGES, _BAD_STEPS = 'bad_images', 'bad_steps'


@LOOPS.register_module()
class ResumableTrainLoop(EpochBasedTrainLoop):
    """An epoch loop that resumes at any iteration as if it had never stopped.

    The order of images, their augmentation and the model's random numbers follow from (seed,
    epoch, position in the epoch). A run that was killed and resumed ends with the same weights
    as an uninterrupted one, bit for bit on CPU. The seed is the runner's at the first start, and
    kept in checkpoints. A run resumed between two epochs first makes up for a validation that its
    checkpoint has missed.

    Args:
        dataloader: As in ``EpochBasedTrainLoop``. A ready-built dataloader is used as it is; its
            augmentation then differs after a resume.
        max_epochs: As in ``EpochBasedTrainLoop``.
        max_bad_images: Number of unreadable images that may be replaced by others; one more stops
            the run. Each process counts its own; a resumed one continues the first's count.
        max_bad_steps: Number of steps with an infinite or NaN loss or gradient that may be
            skipped; one more stops the run. Needs the optimizer wrappers of this package.
        allow_changes: Resume even if model, data, optimizer or schedule have changed, and start
            from weights that were trained on images that are held out here.
        **kwargs: ``val_begin``, ``val_interval``, ... as in ``EpochBasedTrainLoop``.
    """

    def __init__(
        self,
        runner,
        dataloader,
        max_epochs: int,
        max_bad_images: int = 0,
        max_bad_steps: int = 0,
        allow_changes: bool = False,
        **kwargs,
    ):
        self.max_bad_images = natural(max_bad_images, 'max_bad_images')
        self.max_bad_steps = natural(max_bad_steps, 'max_bad_steps')
        self.allow_changes = boolean(allow_changes, 'allow_changes')
        positive(max_epochs, 'max_epochs', int)
        super().__init__(runner, replayable(dataloader), max_epochs, **kwargs)

    def run(self):
        """Train and return the model."""
        check_same_run(self.runner, self.allow_changes)
        self._check_known()
        note_start(self.runner)
        self.seed_of_run = self._settle_seed()
        self._settle_place()
        try:
            self.runner.call_hook('before_train')
            validated = self.runner.message_hub.runtime_info.get(_VALIDATED)
            if self._iter and not self._done_in_epoch() and validated != self._epoch:
                self._validate()  # an epoch's checkpoint is written before its validation
            while self._epoch < self._max_epochs and not self.stop_training:
                self.run_epoch()
                self._validate()
            self.runner.call_hook('after_train')
        finally:
            self.runner.call_hook('release_signals')
        return self.runner.model

    def run_epoch(self) -> None:
        """Run an epoch, or the rest of it after a resume."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        done = self._done_in_epoch()
        for idx, data_batch in enumerate(self._batches(done), done):
            self._check_images(data_batch)
            seed_everything(MODEL, self.seed_of_run, self._iter, get_rank())
            try:
                self.run_iter(idx, data_batch)
            except NonFiniteError as error:
                self.count_bad_step(error, self._iter, self.runner.optim_wrapper.get_lr())
                self.runner.call_hook(
                    'after_train_iter', batch_idx=idx, data_batch=data_batch, outputs=None
                )
                self._iter += 1
            except RuntimeError as error:  # of torch's DDP, in the iteration after
                if 'find_unused_parameters' not in str(error):
                    raise
                raise UserError(
                    'some parameters got no gradient, for which torch waits in several processes: '
                    'set find_unused_parameters=True'
                ) from error
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    def _done_in_epoch(self) -> int:
        return self._iter - self._epoch * len(self.dataloader)

    def _batches(self, done: int):
        sampler = self.dataloader.batch_sampler
        if not isinstance(sampler, ReplayBatchSampler):
            return islice(self.dataloader, done, None)
        sampler.set_place(self.seed_of_run, self._epoch, done)
        return self.dataloader

    def _validate(self) -> None:
        self._decide_current_val_interval()
        is_due = self._epoch % self.val_interval == 0 or self._epoch == self._max_epochs
        if self.runner.val_loop is not None and self._epoch >= self.val_begin and is_due:
            # Update it first: the checkpoint of a best score is written during validation.
            self.runner.message_hub.update_info(_VALIDATED, self._epoch)
            self.runner.val_loop.run()

    def _check_known(self) -> None:
        """Refuse a checkpoint whose counters are not of their types."""
        known = self.runner.message_hub.runtime_info
        for key in (_SEED, _LENGTH, _VALIDATED, _BAD_STEPS):
            natural(known.get(key, 0), f'{key} in the checkpoint')
        texts = known.get(_BAD_IMAGES, [])
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise UserError(
                f'must be a list of texts, got {texts!r}', f'{_BAD_IMAGES} in the checkpoint'
            )

    def _settle_seed(self) -> int:
        """The seed of the first start, the same on all ranks."""
        seed = [self.runner.seed]
        broadcast_object_list(seed)
        hub = self.runner.message_hub
        hub.update_info(_SEED, hub.runtime_info.get(_SEED, seed[0]))
        return hub.get_info(_SEED)

    def _settle_place(self) -> None:
        """If the number of iterations per epoch has changed, restart the epoch."""
        hub, length = self.runner.message_hub, len(self.dataloader)
        if hub.runtime_info.get(_LENGTH, length) != length:
            self._iter = self._epoch * length
            self.runner.logger.warning(
                f'An epoch now has {length} iterations; continuing from the start of epoch '
                f'{self._epoch + 1}, iteration {self._iter}.'
            )
        hub.update_info(_LENGTH, length)

    def _check_images(self, data_batch: dict) -> None:
        """Count replaced images, and stop if they exceed the limit."""
        failed = list(data_batch.get(UNREADABLE, ()))
        for sample in data_batch.get('data_samples', ()):
            failed += sample.metainfo.get(UNREADABLE, ())
        hub = self.runner.message_hub
        known = list(hub.runtime_info.get(_BAD_IMAGES, ()))
        new = [text for text in dict.fromkeys(failed) if text not in known]
        if not new:
            return
        hub.update_info(_BAD_IMAGES, known + new)
        text = f'{len(known + new)} images cannot be read, the last {new[-1]}'
        if UNREADABLE in data_batch or len(known + new) > self.max_bad_images:
            raise UserError(
                f'{text}; repair or remove it, or allow more than '
                f'train_cfg.max_bad_images={self.max_bad_images}'
            )
        self.runner.logger.warning(f'{text}: replaced by another.')

    def count_bad_step(self, error: NonFiniteError, iteration: int, rates: dict) -> None:
        """Count a step that was not taken.

        Args:
            error: What was wrong.
            iteration: When it was.
            rates: The learning rates then, as the optimizer wrapper's ``get_lr`` returns them.

        Raises:
            UserError: If there are more than ``max_bad_steps``.
        """
        hub = self.runner.message_hub
        count = hub.runtime_info.get(_BAD_STEPS, 0) + 1
        hub.update_info(_BAD_STEPS, count)
        text = f'{error}: {self.where(iteration, rates)}'
        if count > self.max_bad_steps:
            raise UserError(
                f'{text}. Skip such steps with train_cfg.max_bad_steps={count}, or start again '
                'from a good checkpoint (load_from without resume) with lower rates or in bfloat16'
            ) from error
        self.runner.logger.warning(f'{text} ({count} of at most {self.max_bad_steps})')

    def where(self, iteration: int, rates: dict) -> str:
        """Describe an iteration of training, for messages."""
        rates = {name: lr[0] for name, lr in rates.items()}
        last = self.runner.message_hub.runtime_info.get('last_ckpt', 'none')
        return f'iteration {iteration}, learning rates {rates}, last good checkpoint {last}'
