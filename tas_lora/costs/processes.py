"""Peak memory of a training step, measured in a separate process."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from mmengine.registry import init_default_scope
from torch import multiprocessing

from ..structures import Subnet
from .benchmark import batch_of, contestants, supernet
from .reference_models import training_step


def in_new_process(job: Callable, *arguments):
    """Run ``job(0, path, *arguments)`` in a new process; returns what it saves to ``path``."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'result'
        multiprocessing.spawn(job, (path, *arguments))
        return torch.load(path, weights_only=True)


def peak_memory(model_config: Mapping, subnet: Subnet, name: str, batch_size: int) -> float:
    """Peak memory of two training steps of a contestant in float32 on the CPU, in MiB.

    Counts what the process holds above the memory before the first step. The system may take pages
    of libraries away at any time, which lowers the figure: the larger of two measurements counts.
    """
    job = (_peak_job, model_config, subnet, name, batch_size)
    return max(in_new_process(*job) for _ in range(2))


def _peak_job(_, path, model_config, subnet, name, batch_size) -> None:
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    model = contestants(model_config, subnet, 'cpu', (name,))[name]
    batch = batch_of(supernet(model_config).image_spec, batch_size, 'cpu')
    torch.save(peak_mib(training_step(model, *batch)), path)


def peak_mib(step: Callable[[], object]) -> float:
    """Peak memory of two calls of ``step``, above what the process holds before, in MiB."""
    Path('/proc/self/clear_refs').write_text('5')  # Linux: resets the peak
    before = _status_mib('VmRSS')
    step()
    step()
    return _status_mib('VmHWM') - before


def _status_mib(field: str) -> float:
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024
