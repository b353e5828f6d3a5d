"""From a config to a running job: the functions that the tools call."""

import inspect
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import LOOPS

from .atomic_files import is_damaged
from .config import addressed, check_data, load_config
from .engine import SubnetTestLoop, SupernetRunner
from .engine.meaning import check_meaning
from .engine.rehearsal import (
    RehearsalRunner,
    check_monitors_early,
    rehearse_search,
    rehearse_training,
    scratch_config,
)
from .engine.runner.run_files import check_first_start, find_checkpoints, newest_whole
from .engine.search import test_chosen
from .errors import UserError, blame
from .models import load_supernet
from .report.page import write_report
from .structures import Subnet
from .work_lock import check_free, held

__all__ = [
    'check_checkpoint_file',
    'check_search',
    'check_training',
    'evaluate',
    'find_resumable',
    'load_config',
    'load_supernet',
    'prepare_search',
    'prepare_training',
    'resume',
    'search',
    'train',
    'use_gloo',
]


def prepare_training(cfg: Config, kind: type[SupernetRunner] = SupernetRunner) -> SupernetRunner:
    """Build a runner, of a ``kind``, with everything that training needs.

    Raises:
        UserError: If config, data or checkpoint do not exist or do not fit.
    """
    check_data(cfg, ('train_dataloader', 'val_dataloader'))
    check_checkpoint_file(
        cfg.get('load_from'),
        'train the previous stage, or give another file by --cfg-options load_from=FILE',
    )
    runner = _prepared(cfg, 'train', 'val', kind=kind)
    check_meaning(runner)
    return runner


def check_training(cfg: Config) -> None:
    """Take one batch through training step, validation, metrics and hooks; write nothing.

    Raises:
        UserError: Naming the part of the config that fails, and why; or if another run is in the
            work directory.
    """
    check_free(cfg.get('work_dir') or '.')
    _check_work_dir(cfg)
    with scratch_config(cfg) as scratch, addressed(cfg):
        rehearse_training(prepare_training(scratch, RehearsalRunner))


def train(cfg: Config) -> SupernetRunner:
    """Train according to ``cfg``, as the only run in its work directory; return the runner.

    Raises:
        UserError: As :func:`prepare_training`; or if another run is in the work directory.
    """
    with work_dir_of(cfg) as note:
        runner = prepare_training(cfg)
        if note:
            runner.logger.warning(note)
        with addressed(cfg):
            check_monitors_early(runner)
        runner.train()
    return runner


def prepare_search(
    cfg: Config, checkpoint: str | Path, kind: type[SupernetRunner] = SupernetRunner
) -> SupernetRunner:
    """Build a runner, of a ``kind``, with everything that a search needs.

    Raises:
        UserError: If config, data or checkpoint do not exist or do not fit.
    """
    check_data(cfg, ('val_dataloader',))
    check_checkpoint_file(checkpoint, 'check the path')
    cfg.load_from = str(checkpoint)
    return _prepared(cfg, 'val', kind=kind)


def check_search(cfg: Config, checkpoint: str | Path, test: bool = False) -> None:
    """Score one subnet on one batch, with ``test`` also of the test set; write nothing.

    Raises:
        UserError: Naming the part of the config that fails, and why.
    """
    if test:
        _check_test(cfg)
    check_free(cfg.get('work_dir') or '.')
    _check_work_dir(cfg)
    with scratch_config(cfg) as scratch, addressed(cfg):
        runner = prepare_search(scratch, checkpoint, RehearsalRunner)
        if test:
            runner.prepare('test')
        rehearse_search(runner)


def search(
    cfg: Config, checkpoint: str | Path, test: bool = False, report: bool = False
) -> dict[str, float]:
    """Search with the weights of ``checkpoint``; return score and costs of the best subnet.

    Args:
        cfg: A search config.
        checkpoint: The weights.
        test: Test the chosen subnets at the end; it reads the test set once.
        report: Write ``report.html`` and figures to the work directory.
    """
    if test:
        _check_test(cfg)
    with work_dir_of(cfg) as note:
        runner = prepare_search(cfg, checkpoint)
        if note:
            runner.logger.warning(note)
        metrics = runner.val()
        if test:
            metrics = metrics | test_chosen(runner)
        if report:
            runner.logger.info(f'Report: {write_report(runner.work_dir)}')
    return metrics


def evaluate(cfg: Config, checkpoint: str | Path, subnets: dict | None = None) -> dict:
    """Test the weights of ``checkpoint``; return the metrics.

    Args:
        cfg: A config with a test set.
        checkpoint: The weights.
        subnets: Subnets to test by name, instead of those of ``cfg.test_cfg``.
    """
    _check_test_data(cfg)
    check_checkpoint_file(checkpoint, 'check the path')
    cfg.load_from = str(checkpoint)
    if subnets:
        if cfg.test_cfg.get('type') in (None, 'TestLoop'):
            raise UserError(
                'this config tests one network, its model.backbone.arch; give no subnets, or a '
                'config with a tas_lora.SubnetTestLoop'
            )
        cfg.test_cfg.subnets = {
            name: s.to_dict() if isinstance(s, Subnet) else s for name, s in subnets.items()
        }
    return _prepared(cfg, 'test').test()


def _prepared(
    cfg: Config, *stages: str, kind: type[SupernetRunner] = SupernetRunner
) -> SupernetRunner:
    """Build a runner with everything that the stages need."""
    _check_work_dir(cfg)
    if cfg.get('launcher', 'none') == 'pytorch' and not torch.cuda.is_available():
        use_gloo(cfg)
    if find_spec('tensorboard') is not None:
        _add_tensorboard(cfg)
    with addressed(cfg):
        with blame('the model or the runner cannot be built'):
            runner = kind.from_cfg(cfg)
        runner.prepare(*stages)
        return runner


def _check_work_dir(cfg: Config) -> None:
    if Path(cfg.get('work_dir') or '.').is_file():
        raise UserError(f'work_dir {cfg.work_dir} is a file; give a folder by --work-dir')


def _check_test(cfg: Config) -> None:
    """Refuse a config that could not test at the end of a search."""
    _check_test_data(cfg)
    loop = cfg.test_cfg.get('type')
    loop = LOOPS.get(loop) if isinstance(loop, str) else loop
    if not (inspect.isclass(loop) and issubclass(loop, SubnetTestLoop)):
        raise UserError("--test needs test_cfg=dict(type='tas_lora.SubnetTestLoop', ...)")


def _add_tensorboard(cfg: Config) -> None:
    """Also write scalars to TensorBoard, unless the config says where they go."""
    backends = (cfg.get('visualizer') or {}).get('vis_backends')
    if backends == [dict(type='LocalVisBackend')]:
        cfg.visualizer.vis_backends = [*backends, dict(type='TensorboardVisBackend')]


def _check_test_data(cfg: Config) -> None:
    if cfg.get('test_cfg') is None:
        raise UserError('this config tests nothing: it has no test_cfg')
    check_data(cfg, ('test_dataloader',))


@contextmanager
def work_dir_of(cfg: Config) -> Iterator[str]:
    """Hold the lock of a config's work directory, for all ranks by the first.

    Yields:
        A line for the log if the last run did not release it; else ''.

    Raises:
        UserError: If another run has it, with host, process and start of that one.
    """
    _check_work_dir(cfg)
    ranks = dict(pytorch='RANK', slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK')
    rank = os.environ.get(ranks.get(cfg.get('launcher'), ''), '0')
    if rank == '0' and cfg.get('work_dir'):
        with held(cfg.work_dir) as note:
            yield note
    else:
        yield ''


def resume(cfg: Config, checkpoint: str | Path | None = None) -> None:
    """Have a training resume, from the newest checkpoint of its work directory unless one is given.

    Without any this is a first start, from the config's ``load_from``.

    Raises:
        UserError: As :func:`find_resumable`; or if the run in the work directory has no checkpoint
            yet, and started from other weights.
    """
    if checkpoint is None:
        checkpoint = find_resumable(cfg.work_dir, checkpoint_folder(cfg))
    if checkpoint is not None:
        cfg.resume, cfg.load_from = True, str(checkpoint)
    elif not (cfg.get('train_cfg') or {}).get('allow_changes'):
        check_first_start(cfg.work_dir, cfg.get('load_from'))


def checkpoint_folder(cfg: Config) -> Path:
    """Where a training writes its checkpoints: the work directory, or as ``out_dir`` says."""
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    work_dir = Path(cfg.work_dir)
    return Path(hook['out_dir']) / work_dir.name if hook.get('out_dir') else work_dir


def find_resumable(work_dir: str | Path, folder: str | Path | None = None) -> Path | None:
    """The checkpoint from which training in ``work_dir`` resumes; None if there is none yet.

    It is the furthest one by epoch and iteration that is intact and of this run. A line in the log
    names the damaged ones that were skipped, and those of earlier runs if there is no other.

    Args:
        work_dir: The work directory.
        folder: Where the checkpoints are, if elsewhere.

    Raises:
        UserError: If there are checkpoints of the run, but all are damaged.
    """
    folder = Path(folder or work_dir)
    found = find_checkpoints(folder, work_dir)
    damaged = ', '.join(path.name for path in found.damaged)
    if damaged and found.newest is None and not found.of_others:
        raise UserError(f'{folder} has no intact checkpoint to resume from: {damaged} damaged')
    if damaged:
        _warn(f'Skipped in {folder}, since damaged (truncated or changed): {damaged}')
    if found.of_others and found.newest is None:
        others = ', '.join(path.name for path in found.of_others)
        _warn(
            f'The run that was last started in {work_dir} has no checkpoint yet, so it starts '
            f'again; not resumed, as of an earlier run: {others} (--resume FILE does)'
        )
    return found.newest


def _warn(text: str) -> None:
    """Log a line before there is a runner, on one rank."""
    if os.environ.get('RANK', '0') == '0':
        print_log(text, 'current', logging.WARNING)


def check_checkpoint_file(path: str | Path | None, advice: str) -> None:
    """Refuse a checkpoint that does not exist or is damaged."""
    if not path or '://' in str(path):
        return
    path = Path(str(path))
    if not path.is_file():
        what = 'is not a file' if path.exists() else 'does not exist'
        raise UserError(f'checkpoint {path} {what}; {advice}')
    if is_damaged(path):
        whole = newest_whole(path.parent)
        hint = f'the newest intact one in its folder is {whole}' if whole else advice
        raise UserError(f'checkpoint {path} is damaged (truncated or changed); {hint}')


def use_gloo(cfg: Config) -> None:
    """Set up a distributed run on CPUs; MMEngine would ask for CUDA devices."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
