"""What a step costs in several processes, and what it costs to look for unused parameters; and
the peak memory of a contestant, measured in a process of its own."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from mmengine.registry import init_default_scope
from torch import multiprocessing
from torch.nn.parallel import DistributedDataParallel

from ..structures import Subnet
from .benchmark import batch_of, contestants, supernet
from .reference_models import training_step
from .timing import milliseconds, stopwatch


def in_new_process(job: Callable, *arguments, processes: int = 1):
    """What ``job(rank, processes, path, *arguments)`` of rank 0 saves to ``path``."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'result'
        multiprocessing.spawn(job, (processes, path, *arguments), nprocs=processes)
        return torch.load(path, weights_only=True)


def ddp_step(model_config: Mapping, batch_size: int, rounds: int, threads: int) -> dict[str, dict]:
    """Milliseconds of a step of the largest subnet: 1 and 2 gloo processes on the CPU.

    Each process takes ``batch_size`` images. Nothing is unused there, so the search for unused
    parameters can be left out for comparison.
    """
    return {
        f'{processes} processes, {"with" if find else "without"} the search for unused': (
            in_new_process(
                _ddp_job, model_config, batch_size, rounds, threads, find, processes=processes
            )
        )
        for processes in (1, 2)
        for find in (True, False)
    }


def _ddp_job(rank, processes, path, model_config, batch_size, rounds, threads, find) -> None:
    torch.set_num_threads(threads)
    init_default_scope('mmpretrain')
    store = dist.FileStore(f'{path}.store', processes)
    dist.init_process_group('gloo', store=store, rank=rank, world_size=processes)
    torch.manual_seed(0)
    model = supernet(model_config).train()
    wrapped = DistributedDataParallel(model, find_unused_parameters=find)
    step = training_step(model, *batch_of(model.image_spec, batch_size, 'cpu'), forward=wrapped)
    seconds = [stopwatch(step) for _ in range(rounds + 1)][1:]
    if rank == 0:
        torch.save(milliseconds(seconds), path)
    dist.destroy_process_group()


def peak_memory(model_config: Mapping, subnet: Subnet, name: str, batch_size: int) -> float:
    """MiB that two training steps of a contestant take at their peak, in a process of its own.

    Float32 on the CPU, above what the process holds before the first step. A system may take
    pages of libraries from a process at any time, which lowers what is seen: the larger of two
    measurements counts.
    """
    job = (_peak_job, model_config, subnet, name, batch_size)
    return max(in_new_process(*job) for _ in range(2))


def _peak_job(rank, processes, path, model_config, subnet, name, batch_size) -> None:
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    model = contestants(model_config, subnet, 'cpu', (name,))[name]
    spec = supernet(model_config).image_spec
    step = training_step(model, *batch_of(spec, batch_size, 'cpu'))
    torch.save(peak_mib(step), path)


def peak_mib(step: Callable[[], object]) -> float:
    """MiB that two calls of ``step`` take at their peak, above what the process holds before."""
    Path('/proc/self/clear_refs').write_text('5')  # Linux: let the peak start from here
    before = _status_mib('VmRSS')
    step()
    step()
    return _status_mib('VmHWM') - before


def _status_mib(field: str) -> float:
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024
