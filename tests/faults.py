"""Faults of a training or a search, as hooks and datasets that configs can name."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import psutil
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmpretrain.datasets import MNIST
from mmpretrain.registry import DATASETS


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


def _first_to_take(file: str) -> bool:
    """Whether the file is there and this call removed it."""
    try:
        os.unlink(file)
    except FileNotFoundError:
        return False
    return True


@HOOKS.register_module(force=True)
class EndOnce(Hook):
    """Ends the process in an evaluation by SIGKILL, as long as it finds the file to remove."""

    def __init__(self, file: str):
        self.file = file

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if _first_to_take(self.file):
            os.kill(os.getpid(), signal.SIGKILL)


@HOOKS.register_module(force=True)
class TellAndWait(Hook):
    """Writes its process to a file in an evaluation, then waits.

    Args:
        file: The file.
        processes: How many are waited for.
        seconds: How long it waits in any case.
        gate: File whose removal is waited for.
    """

    def __init__(self, file: str, processes: int = 1, seconds: float = 0.0, gate: str = ''):
        self.file, self.processes, self.seconds, self.gate = file, processes, seconds, gate

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        with open(self.file, 'a') as file:
            file.write(f'{os.getpid()}\n')
        time.sleep(self.seconds)
        end = time.monotonic() + 100
        while len(set(Path(self.file).read_text().split())) < self.processes or (
            self.gate and Path(self.gate).exists()
        ):
            assert time.monotonic() < end, 'the others have not come'
            time.sleep(0.05)


@HOOKS.register_module(force=True)
class TellMeasurements(Hook):
    """Writes the process that measures a subnet to a file, each time."""

    def __init__(self, file: str):
        self.file = file

    def before_run(self, runner):
        measured = runner.val_loop.settings.measured
        measure = measured.measure

        def tell(subnet):
            with open(self.file, 'a') as file:
                file.write(f'{os.getpid()}\n')
            return measure(subnet)

        if not runner.cfg['val_cfg'].get('ray'):
            measured.measure = tell


@HOOKS.register_module(force=True)
class RunOut(Hook):
    """Has no memory for subnets of a width: an error of Python, or the end of the process."""

    def __init__(self, embed_dim: int, killed: bool):
        self.embed_dim, self.killed = embed_dim, killed

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if runner.model.subnet.embed_dim != self.embed_dim:
            return
        if self.killed:
            os.kill(os.getpid(), signal.SIGKILL)
        raise MemoryError


@HOOKS.register_module(force=True)
class FailInTask(Hook):
    """Fails in an evaluation, as a defect does."""

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        raise RuntimeError('a wrong shape')


@DATASETS.register_module(force=True)
class OtherOnSomeMachines(MNIST):
    """Has other labels on machines where OTHER_DATA is set."""

    def load_data_list(self):
        data = super().load_data_list()
        if os.environ.get('OTHER_DATA'):
            for info in data:
                info['gt_label'] = 0
        return data
