"""Faults of a training, as hooks and datasets that configs can name."""

import json
import os
import shutil
import signal
import time

import psutil
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module(force=True)
class SignalAt(Hook):
    """Sends this process a signal during an iteration, counted from 0 over the training."""

    def __init__(
        self, iteration: int, number: int = signal.SIGTERM, rank: int = 0, group: bool = False
    ):
        self.iteration, self.number, self.rank, self.group = iteration, number, rank, group

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.iteration and get_rank() == self.rank:
            (os.killpg if self.group else os.kill)(os.getpid(), self.number)


@HOOKS.register_module(force=True)
class FailAt(Hook):
    """Fails in an iteration, as a defect does."""

    def __init__(self, iteration: int):
        self.iteration = iteration

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.iteration:
            raise RuntimeError('out of luck')


@HOOKS.register_module(force=True)
class RemoveWorkDir(Hook):
    """Removes the work directory in an iteration, as a clean-up script does."""

    def __init__(self, iteration: int):
        self.iteration = iteration

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.iteration:
            shutil.rmtree(runner.work_dir)


@HOOKS.register_module(force=True)
class EndInValidation(Hook):
    """Ends the process in the first validation."""

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        raise SystemExit(1)


@HOOKS.register_module(force=True)
class SlowDisk(Hook):
    """Takes its time before a checkpoint is written."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def before_save_checkpoint(self, runner, checkpoint):
        time.sleep(self.seconds)


@HOOKS.register_module(force=True)
class SpoilInputs(Hook):
    """Makes the loss NaN in some iterations."""

    def __init__(self, iterations: list[int]):
        self.iterations = iterations

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter in self.iterations:
            data_batch['inputs'] = [image.float() * torch.nan for image in data_batch['inputs']]


@HOOKS.register_module(force=True)
class LogResources(Hook):
    """Writes what this process holds, every some iterations of training or evaluation."""

    def __init__(self, file: str, interval: int):
        self.file, self.interval, self.count = file, interval, 0

    def note(self, *_, **__):
        self.count += 1
        if self.count % self.interval:
            return
        process = psutil.Process()
        held = dict(
            count=self.count,
            memory=process.memory_info().rss,
            files=process.num_fds(),
            threads=process.num_threads(),
            children=len(process.children(recursive=True)),
        )
        with open(self.file, 'a') as file:
            file.write(json.dumps(held) + '\n')

    after_train_iter = note
    after_val_iter = note
