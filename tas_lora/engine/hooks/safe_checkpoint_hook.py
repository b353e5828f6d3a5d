"""Checkpoints that survive whatever happens while they are written, and one when asked to stop."""

import os
import signal
import threading
from pathlib import Path

import torch
from mmengine.dist import all_reduce, barrier, get_world_size, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.optim import OptimWrapperDict

from ...atomic_files import UNFINISHED, seal, write_atomic
from ...checks import boolean
from ...errors import STOPPED, UserError
from ...registry import HOOKS

_BACKEND = 'tas_lora'
_STOPPED_FILE = 'stopped_iter_{}.pth'


class WholeFiles(LocalBackend):
    """MMEngine's local files, written whole or not at all, and deleted behind their successors."""

    def __init__(self):
        super().__init__()
        self.replaced: list[str] = []

    def put(self, obj: bytes, filepath) -> None:
        """Write a checkpoint with its digest."""
        self.replaced = [path for path in self.replaced if path != str(filepath)]
        try:
            Path(filepath).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(filepath, seal(obj))
        except OSError as error:
            raise UserError(
                f'checkpoint {filepath} cannot be written: {error.strerror}; what was written '
                'before is whole: make room and go on by --resume'
            ) from error

    def remove(self, filepath) -> None:
        """Note a file that :meth:`delete_replaced` is to delete."""
        self.replaced.append(str(filepath))

    def delete_replaced(self) -> None:
        """Delete what is to be removed, now that its successor is on disk."""
        while self.replaced:
            Path(self.replaced.pop()).unlink(missing_ok=True)


register_backend(_BACKEND, WholeFiles, force=True)


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """MMEngine's ``CheckpointHook`` for runs that are killed, preempted, or fill a disk.

    A checkpoint is written beside, synced and renamed, its SHA-256 in it; those it replaces are
    deleted after that. On SIGTERM or SIGINT, which may reach any of the ranks, the iteration is
    finished (and, if gradients are being accumulated, those up to the step; a validation runs to
    its end first), a checkpoint is written, and the process ends with exit code 75. A second
    SIGINT ends it at once. With :class:`ResumableTrainLoop` a resumed run goes on from there;
    MMEngine's loop begins the epoch again.

    Args:
        *args: As in ``CheckpointHook``.
        stop_on_signal: Off, signals end the process as they do without this hook.
        **kwargs: As in ``CheckpointHook``.
    """

    def __init__(self, *args, stop_on_signal: bool = True, **kwargs):
        super().__init__(*args, **kwargs)
        self.stop_on_signal = boolean(stop_on_signal, 'stop_on_signal')
        is_elsewhere = '://' in str(self.out_dir) or self.file_client_args is not None
        if self.backend_args is None and not is_elsewhere:
            self.backend_args = dict(backend=_BACKEND)
        self.handlers: dict = {}
        self.is_told_to_stop = False

    def before_train(self, runner):
        super().before_train(runner)
        if is_main_process():
            for path in Path(self.out_dir).glob(f'.*.pth{UNFINISHED}'):  # a kill left it
                path.unlink()
        if self.stop_on_signal and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self.handlers[number] = signal.signal(number, self._note_signal)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        if self._some_rank_is_told() and _has_stepped(runner.optim_wrapper):
            self._stop(runner)

    def release_signals(self, runner):
        """Called by our training loop however it ends."""
        while self.handlers:
            signal.signal(*self.handlers.popitem())

    after_run = release_signals

    def _save_checkpoint_with_step(self, runner, step, meta):
        super()._save_checkpoint_with_step(runner, step, meta)
        if is_main_process():
            for path in Path(self.out_dir).glob(_STOPPED_FILE.format('*')):
                path.unlink()
            self._delete_replaced()

    def _save_best_checkpoint(self, runner, metrics):
        super()._save_best_checkpoint(runner, metrics)
        if self.save_best:
            self._delete_replaced()

    def _delete_replaced(self):
        if isinstance(self.file_backend, WholeFiles):  # not files elsewhere
            self.file_backend.delete_replaced()

    def _note_signal(self, number, frame):
        self.is_told_to_stop = True
        # A job's SIGTERM comes directly and through the launcher; a second Ctrl-C is meant.
        if number == signal.SIGINT and number in self.handlers:
            signal.signal(number, self.handlers.pop(number))

    def _some_rank_is_told(self) -> bool:
        if get_world_size() == 1:
            return self.is_told_to_stop
        told = torch.tensor(float(self.is_told_to_stop))
        all_reduce(told, 'max')
        return bool(told)

    def _stop(self, runner):
        """Write where training is, then end the process."""
        done = runner.iter + 1  # the loop counts an iteration only after its hooks
        name = _STOPPED_FILE.format(done)
        self.last_ckpt = os.path.join(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=dict(epoch=runner.epoch, iter=done),
            by_epoch=False,
            backend_args=self.backend_args,
        )
        if is_main_process():
            write_atomic(Path(runner.work_dir) / 'last_checkpoint', self.last_ckpt)
        barrier()  # a launcher ends all processes as soon as one has ended
        runner.logger.info(
            f'Stopped by a signal; {self.last_ckpt} is written, go on by --resume. '
            f'Exit code {STOPPED}.'
        )
        runner.visualizer.close()
        raise SystemExit(STOPPED)


def _has_stepped(optim_wrapper) -> bool:
    """Whether no gradients wait for a step; MMEngine's wrapper of several does not say."""
    return type(optim_wrapper) is OptimWrapperDict or optim_wrapper.should_update()
