"""Options that are known to be slow on this machine, said before a run starts."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.device import get_device
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapperDict

from ..costs.timing import slowdown
from ..errors import UserError
from ..models import SupernetClassifier
from ..search import count_flops
from ..structures import SearchSpace
from .hooks import CompileWarmupHook
from .hooks.compile_warmup_hook import batch_size_of
from .model_access import supernet_of

_CGROUP = Path('/sys/fs/cgroup/cpu.max')  # of Linux: microseconds of processor per period
_PATIENCE = 0.5  # seconds that a batch may take longer
_MATRIX_UNITS = {torch.bfloat16: (8, 0), torch.float16: (7, 0)}  # since which compute capability
_TRITON = (7, 0)  # what torch.compile needs on a GPU
_PASSES = 3  # a training step takes each product three times, an evaluation once


def check_training_speed(runner) -> None:
    """Refuse what this machine has no arithmetic or compiler for; log other slow options.

    The precision is not changed to float32 instead: a measured time must not decide the weights.

    Args:
        runner: The runner, prepared to train.

    Raises:
        UserError: If mixed precision is slower than float32, by measured products or as a GPU only
            emulates it, or blocks cannot be compiled.
    """
    wrapper = runner.optim_wrapper
    if isinstance(wrapper, OptimWrapperDict):
        wrapper = next(iter(wrapper.optim_wrappers.values()))
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    dtype = getattr(wrapper, 'dtype', None)
    if dtype is not None and isinstance(model, SupernetClassifier):
        images = _PASSES * batch_size_of(runner)
        check_precision(model, dtype, images, 'optim_wrapper.amp', 'leave out --amp, and train')
    space = getattr(runner.train_loop, 'space', None)
    lines = (*_threads(), *_workers(runner), *_graphs(runner, model, space))
    for line in (*lines, *_on_gpu(runner, dtype)):
        runner.logger.warning(line)


def check_search_speed(runner) -> None:
    """As :func:`check_training_speed`, for the precision of a search in this process."""
    loop = runner.val_loop
    if runner.cfg.val_cfg.get('ray') is not None:  # its workers check
        return
    model, low = supernet_of(runner), loop.settings.precision
    batch = min(loop.images.batch_size, len(loop.images))
    if low != 'float32':
        check_precision(model, getattr(torch, low), batch, 'val_cfg.precision', 'search')
    for line in (*_threads(), *_graphs(runner, model, loop.settings.space)):
        runner.logger.warning(line)


def check_precision(
    model: SupernetClassifier, dtype: torch.dtype, images: int, field: str, advice: str
) -> None:
    """Refuse ``dtype`` on a machine that multiplies more slowly in it than in float32.

    Args:
        model: The supernet.
        dtype: The precision of the forward.
        images: Forwards of one image that a batch costs.
        field: Where the config sets the precision.
        advice: What to do 'in float32'.

    Raises:
        UserError: If products of a processor take twice as long, and with them a batch half a
            second longer; or if a GPU emulates bfloat16.
    """
    if dtype == torch.float32:
        return
    if get_device() == 'cuda':
        _check_emulation(dtype, field, advice)
    if get_device() != 'cpu':
        return
    factor, rate = slowdown(dtype)
    products = images * count_flops(model.backbone.arch, **model.image_spec)
    fast, slow = products / rate, factor * products / rate
    if factor > 2 and slow - fast > _PATIENCE:
        raise UserError(
            f'is {str(dtype)[6:]!r}, but a product takes this processor {factor:.0f} times as long '
            f'in it as in float32 (measured): a batch of the largest subnet some {slow:.1f} s, not '
            f'{fast:.1f}; {advice} in float32',
            field,
        )


def _check_emulation(dtype: torch.dtype, field: str, advice: str) -> None:
    """Refuse bfloat16 on GPUs before Ampere: torch says that they support it, but emulates it."""
    found = _capability()
    if dtype == torch.bfloat16 and found < _MATRIX_UNITS[dtype]:
        has_float16 = found >= _MATRIX_UNITS[torch.float16]
        choice = "set 'float16'" if has_float16 else f'{advice} in float32'
        raise UserError(
            f"is 'bfloat16', which {_gpu()} only emulates, without its matrix units; {choice}",
            field,
        )


def _capability() -> tuple[int, int]:
    return torch.cuda.get_device_capability()


def _gpu() -> str:
    major, minor = _capability()
    return f'{torch.cuda.get_device_name()} (compute capability {major}.{minor})'


def usable_cores() -> int:
    """Cores that this process may use, by its affinity and its control group."""
    cores = _affinity()
    quota, _, period = _CGROUP.read_text().partition(' ') if _CGROUP.is_file() else ('max', '', '')
    return cores if quota == 'max' else max(1, min(cores, round(int(quota) / int(period))))


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def _threads() -> Iterator[str]:
    threads, processes, cores = torch.get_num_threads(), _processes(), usable_cores()
    if threads * processes > cores:
        each = f', in each of {processes} processes' if processes > 1 else ''
        yield (
            f'torch uses {threads} threads{each}, but this process may use {cores} of the cores: '
            f'they will wait for each other; set OMP_NUM_THREADS={max(1, cores // processes)}.'
        )


def _workers(runner) -> Iterator[str]:
    """Of training alone: those of a validation sleep meanwhile."""
    workers, processes = runner.train_loop.dataloader.num_workers, _processes()
    if workers * processes > (cores := usable_cores()):
        each = f', in each of {processes} processes' if processes > 1 else ''
        yield (
            f'train_dataloader.num_workers is {workers}{each}, but this process may use {cores} of '
            f'the cores: more readers read no faster; set {max(1, cores // processes)}.'
        )


def _processes() -> int:
    """Processes of this run that share the cores; a launcher may have pinned each to its own."""
    is_pinned = _affinity() < os.cpu_count()
    return 1 if is_pinned else int(os.environ.get('LOCAL_WORLD_SIZE', '1'))


def _graphs(runner, model, space: SearchSpace | None) -> Iterator[str]:
    warms_up = any(isinstance(hook, CompileWarmupHook) for hook in runner.hooks)
    compiles = isinstance(model, SupernetClassifier) and model.backbone.compile_blocks
    if compiles and get_device() == 'cuda' and _capability() < _TRITON:
        raise UserError(
            f'is True, but torch cannot compile for {_gpu()}: it needs 7.0 or higher; set False',
            'model.backbone.compile_blocks',
        )
    if not compiles or space is None or warms_up:
        return
    choices = len(space.num_heads) + len(space.mlp_ratio)
    yield (
        f'model.backbone.compile_blocks compiles {len(space.embed_dim) * choices} pairs of widths, '
        'each for some seconds when it first occurs: a short run gains nothing from it.'
    )


def _on_gpu(runner, dtype: torch.dtype | None) -> Iterator[str]:
    if get_device() != 'cuda':
        return
    usable = [low for low, since in _MATRIX_UNITS.items() if _capability() >= since]
    if dtype is None and usable:
        name = str(usable[0])[6:]
        yield f'Training in float32: --amp {name} uses the matrix units of this GPU.'
    if dtype is torch.float16 and not usable:
        yield f'{_gpu()} has no matrix units: --amp saves memory there, but hardly time.'
    if runner.train_loop.dataloader.num_workers == 0:
        yield 'train_dataloader.num_workers is 0: the GPU waits while each batch is read.'
