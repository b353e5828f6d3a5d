"""Checkpoints that survive a crash while they are written, and one more at a signal to stop."""

import logging
import os
import re
import signal
import threading
from functools import partial
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import torch
from mmengine.dist import all_reduce, barrier, is_main_process, master_only
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.optim import OptimWrapperDict

from ...atomic_files import UNFINISHED, seal, write_atomic
from ...checks import boolean
from ...errors import STOPPED, UserError, WriteError
from ...metric_rules import GREATER, LESS, settled_rule
from ...models.safe_load import read_checkpoint
from ...registry import HOOKS

_BACKEND = 'tas_lora'
_STOPPED_FILE = 'stopped_iter_{}.pth'


class WholeFiles(LocalBackend):
    """MMEngine's local files, written atomically, and deleted only after their successors exist."""

    def __init__(self):
        super().__init__()
        self.replaced: list[str] = []

    def put(self, obj: bytes, filepath) -> None:
        """Write a checkpoint with its digest."""
        self.replaced = [path for path in self.replaced if path != str(filepath)]
        try:
            write_atomic(filepath, seal(obj))
        except WriteError as error:
            raise UserError(
                f'checkpoint {error}; checkpoints written before are intact where they still are: '
                'continue with --resume'
            ) from error

    def remove(self, filepath) -> None:
        """Note a file for :meth:`delete_replaced`."""
        self.replaced.append(str(filepath))

    def delete_replaced(self) -> None:
        """Delete the noted files, now that their successor is on disk."""
        while self.replaced:
            Path(self.replaced.pop()).unlink(missing_ok=True)


register_backend(_BACKEND, WholeFiles, force=True)


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """MMEngine's ``CheckpointHook`` for runs that are killed, preempted, or fill a disk.

    A checkpoint goes to a temporary file, is synced and renamed, and contains its SHA-256. The
    checkpoints it replaces are deleted afterwards. On SIGTERM or SIGINT at any rank, training
    finishes the iteration (with gradient accumulation, the iterations up to the next step; a
    running validation ends first), writes a checkpoint, and exits with code 75. A second SIGINT
    ends the process at once. :class:`ResumableTrainLoop` resumes at that iteration; MMEngine's
    loop restarts the epoch.

    Args:
        *args: As in ``CheckpointHook``.
        stop_on_signal: If False, signals end the process as they do without this hook.
        **kwargs: As in ``CheckpointHook``.
    """

    _default_less_keys = list(LESS)

    def __init__(self, *args, stop_on_signal: bool = True, **kwargs):
        super().__init__(*args, **kwargs)
        self.stop_on_signal = boolean(stop_on_signal, 'stop_on_signal')
        is_elsewhere = '://' in str(self.out_dir) or self.file_client_args is not None
        self._check_names(is_elsewhere or self.backend_args is not None)
        if self.backend_args is None and not is_elsewhere:
            self.backend_args = dict(backend=_BACKEND)
        self.handlers: dict = {}
        self.is_told_to_stop = False

    def _check_names(self, is_remote: bool) -> None:
        """Refuse what would fail at the end, or lose checkpoints."""
        if self.published_keys is not None and 'state_dict' not in self.published_keys:
            raise UserError(
                f"must include 'state_dict', the weights, got {self.published_keys}",
                'published_keys',
            )
        if self.published_keys is not None and is_remote:
            raise UserError('needs checkpoints in local files', 'published_keys')
        if not re.fullmatch(
            r'(?!best_|stopped_|\.)[^{}/]*\{[^{}]*\}[^{}/]*\.pth', self.filename_tmpl
        ):
            raise UserError(
                "must have one {} and end with '.pth', without a folder and not as 'best_' or "
                f"'stopped_' files, or no training could resume; got {self.filename_tmpl!r}",
                'filename_tmpl',
            )

    def before_train(self, runner):
        super().before_train(runner)
        if not (self.save_optimizer and self.save_param_scheduler):
            runner.logger.warning('Its checkpoints hold weights only: no training can resume.')
        if is_main_process():
            if '://' not in str(self.out_dir):  # later, one that is missing was removed
                Path(self.out_dir).mkdir(parents=True, exist_ok=True)
            for path in Path(self.out_dir).glob(f'.*.pth{UNFINISHED}'):  # left by a kill
                path.unlink()
            last = Path(runner.work_dir) / 'last_checkpoint'
            if last.is_symlink():  # MMEngine would write to where it leads
                last.unlink()
        if self.stop_on_signal and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self.handlers[number] = signal.signal(number, self._note_signal)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        told = torch.tensor(float(self.is_told_to_stop))
        all_reduce(told, 'max')
        wrapper = runner.optim_wrapper  # MMEngine's wrapper of several does not know if it stepped
        if told and (type(wrapper) is OptimWrapperDict or wrapper.should_update()):
            self._stop(runner)

    def _init_rule(self, rules, key_indicators):
        """As in MMEngine, but do not guess where a name has two senses, and warn of odd rules."""
        if (self.greater_keys, self.less_keys) == (list(GREATER), list(LESS)):
            rules = rules * len(key_indicators) if len(rules) == 1 else rules
            warn = partial(print_log, logger='current', level=logging.WARNING)
            rules = [
                rule if metric == 'auto' else settled_rule(metric, rule, warn=warn)
                for metric, rule in zip(key_indicators, rules, strict=True)
            ]
        super()._init_rule(rules, key_indicators)

    @master_only
    def _publish_model(self, runner, ckpt_path):
        """As in MMEngine, in a folder of its own, from which no training resumes."""
        checkpoint, content = read_checkpoint(ckpt_path), BytesIO()
        kept = {key: checkpoint[key] for key in self.published_keys if key in checkpoint}
        torch.save(kept, content)
        name = f'{Path(ckpt_path).stem}-{sha256(content.getvalue()).hexdigest()[:8]}.pth'
        path = Path(ckpt_path).parent / 'published' / name
        path.parent.mkdir(exist_ok=True)
        self.file_backend.put(content.getvalue(), path)
        runner.logger.info(f'{", ".join(kept)} of {ckpt_path} are published as {path}.')

    def release_signals(self, runner):
        """Restore the signal handlers; our training loop always calls it at its end."""
        while self.handlers:
            signal.signal(*self.handlers.popitem())

    after_run = release_signals

    def _save_checkpoint_with_step(self, runner, step, meta):
        runner.call_hook('read_late')  # an error names the last checkpoint, not this one
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
        if isinstance(self.file_backend, WholeFiles):  # files may be remote
            self.file_backend.delete_replaced()

    def _note_signal(self, number, frame):
        self.is_told_to_stop = True
        # A job's SIGTERM may come twice, also through the launcher; a second Ctrl-C is meant.
        if number == signal.SIGINT and number in self.handlers:
            signal.signal(number, self.handlers.pop(number))

    def _stop(self, runner):
        """Write a checkpoint, then end the process."""
        runner.call_hook('read_late')
        done = runner.iter + 1  # the loop counts an iteration after its hooks
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
            f'Stopped by a signal; {self.last_ckpt} is written, continue with --resume. '
            f'Exit code {STOPPED}.'
        )
        runner.visualizer.close()
        raise SystemExit(STOPPED)
