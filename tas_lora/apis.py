"""From a config to a running job: the functions that the tools call."""

import copy
import inspect
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
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
from .engine.runner import ResumableTrainLoop
from .engine.runner.resume_check import check_resumes
from .engine.runner.run_files import (
    checkpoint_folder,
    checkpoint_or_first_start,
    find_resumable,
    first_start,
    is_remote,
    newest_whole,
)
from .engine.search import test_chosen
from .engine.search.identity import check_resumes_search
from .engine.slow_options import check_search_speed, check_training_speed
from .errors import UserError, blame
from .models import load_supernet
from .ranks import is_first_rank
from .report.page import write_report
from .structures import Subnet
from .work_lock import check_free, check_path, held

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
    if is_first_rank(cfg.get('launcher', 'none')):  # it chooses from which file all resume
        check_checkpoint_file(
            cfg.get('load_from'),
            'train the previous stage, or give another file by --cfg-options load_from=FILE',
        )
    runner = _prepared(cfg, 'train', 'val', kind=kind)
    check_meaning(runner)
    with addressed(cfg):
        check_training_speed(runner)
    return runner


def check_training(cfg: Config, resume: str | Path | bool = False) -> None:
    """Take one batch through training step, validation, metrics and hooks; write nothing.

    Args:
        cfg: A config.
        resume: As in :func:`train`. The settings are then compared with those of the checkpoint.

    Raises:
        UserError: Naming the part of the config that fails, and why; or if another run is in the
            work directory.
    """
    _check_free(cfg)
    cfg = copy.deepcopy(cfg)
    _resume(cfg, resume or (cfg.get('resume') and not cfg.get('load_from')))
    cfg.first_start = first_start(cfg)
    with scratch_config(cfg) as scratch, addressed(cfg):
        runner = prepare_training(scratch, RehearsalRunner)
        is_resumed = cfg.get('resume') and cfg.get('load_from')
        if is_resumed and isinstance(runner.train_loop, ResumableTrainLoop):
            check_resumes(runner, cfg.load_from, runner.train_loop.allow_changes)
        rehearse_training(runner)


def train(
    cfg: Config, resume: str | Path | bool = False, hooks: Sequence[Hook] = ()
) -> SupernetRunner:
    """Train according to ``cfg``, as the only run in its work directory; return the runner.

    Args:
        cfg: A config.
        resume: A checkpoint to resume from, or True for the newest one; see :func:`resume`.
        hooks: Further ones, that only watch: they are no part of what a resumed run compares.

    Raises:
        UserError: As :func:`prepare_training`; or if another run is in the work directory.
    """
    with work_dir_of(cfg) as note:
        _resume(cfg, resume)
        runner = prepare_training(cfg)
        if note:
            runner.logger.warning(note)
        with addressed(cfg):
            check_monitors_early(runner)
        _watch(runner, hooks)
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
    runner = _prepared(cfg, 'val', kind=kind)
    check_search_speed(runner)
    return runner


def check_search(cfg: Config, checkpoint: str | Path, test: bool = False) -> None:
    """Score one subnet on one batch, with ``test`` also of the test set; write nothing.

    Raises:
        UserError: Naming the part of the config that fails, and why.
    """
    if test:
        _check_test(cfg)
    _check_free(cfg)
    with scratch_config(cfg) as scratch, addressed(cfg):
        runner = prepare_search(scratch, checkpoint, RehearsalRunner)
        if test:
            runner.prepare('test')
        if cfg.get('work_dir'):
            check_resumes_search(runner, Path(cfg.work_dir))
        rehearse_search(runner)


def search(
    cfg: Config,
    checkpoint: str | Path,
    test: bool = False,
    report: bool = False,
    hooks: Sequence[Hook] = (),
) -> dict[str, float]:
    """Search with the weights of ``checkpoint``; return score and costs of the best subnet.

    Args:
        cfg: A search config.
        checkpoint: The weights.
        test: Test the chosen subnets at the end; it reads the test set once.
        report: Write ``report.html`` and figures to the work directory.
        hooks: As in :func:`train`.
    """
    if test:
        _check_test(cfg)
    with work_dir_of(cfg) as note:
        runner = prepare_search(cfg, checkpoint)
        if note:
            runner.logger.warning(note)
        _watch(runner, hooks)
        metrics = runner.val()
        if test:
            metrics = metrics | test_chosen(runner)
        if report:
            runner.logger.info(f'Report: {write_report(runner.work_dir)}')
    return metrics


def evaluate(
    cfg: Config,
    checkpoint: str | Path,
    subnets: dict | None = None,
    hooks: Sequence[Hook] = (),
) -> dict:
    """Test the weights of ``checkpoint``; return the metrics.

    Args:
        cfg: A config with a test set.
        checkpoint: The weights.
        subnets: Subnets to test by name, instead of those of ``cfg.test_cfg``.
        hooks: As in :func:`train`.
    """
    _check_test_data(cfg)
    if cfg.get('work_dir'):
        check_path(cfg.work_dir)
    check_checkpoint_file(checkpoint, 'check the path')
    cfg.load_from = str(checkpoint)
    if cfg.get('train_cfg') is None:  # a config of a network and its data, as for tools/order.py
        cfg.train_dataloader = cfg.optim_wrapper = None
    if subnets:
        if cfg.test_cfg.get('type') in (None, 'TestLoop'):
            raise UserError(
                'this config tests one network, its model.backbone.arch; give no subnets, or a '
                'config with a tas_lora.SubnetTestLoop'
            )
        cfg.test_cfg.subnets = {
            name: s.to_dict() if isinstance(s, Subnet) else s for name, s in subnets.items()
        }
    runner = _prepared(cfg, 'test')
    _watch(runner, hooks)
    return runner.test()


def _prepared(
    cfg: Config, *stages: str, kind: type[SupernetRunner] = SupernetRunner
) -> SupernetRunner:
    """Build a runner with everything that the stages need."""
    if cfg.get('launcher', 'none') == 'pytorch' and not torch.cuda.is_available():
        use_gloo(cfg)
    if find_spec('tensorboard') is not None:
        _add_tensorboard(cfg)
    with addressed(cfg):
        with blame('the model or the runner cannot be built'):
            runner = kind.from_cfg(cfg)
        runner.prepare(*stages)
        return runner


def _watch(runner: SupernetRunner, hooks: Sequence[Hook]) -> None:
    for hook in hooks:
        runner.register_hook(hook, 'VERY_LOW')


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
    """Hold the locks of a config's work directory and folder of checkpoints, by the first rank.

    Yields:
        A line for the log if the last run did not release them; else ''.

    Raises:
        UserError: If another run has one, with host, process, start and command of that one.
    """
    with ExitStack() as stack:
        folders = _folders(cfg) if is_first_rank(cfg.get('launcher', 'none')) else []
        yield ' '.join(filter(None, [stack.enter_context(held(folder)) for folder in folders]))


def _folders(cfg: Config) -> list[Path]:
    """The local folders that a run writes to."""
    if not cfg.get('work_dir'):
        return []
    work_dir, folder = Path(cfg.work_dir), _checkpoint_folder(cfg)
    is_elsewhere = cfg.get('train_cfg') is not None and not is_remote(folder)
    return [work_dir, *([Path(folder)] if is_elsewhere and _differ(work_dir, folder) else [])]


def _differ(*paths: str | Path) -> bool:
    return len({os.path.realpath(path) for path in paths}) > 1


def _check_free(cfg: Config) -> None:
    for folder in _folders(cfg):
        check_free(folder)


def resume(cfg: Config, checkpoint: str | Path | None = None) -> None:
    """Have a training resume, from the newest checkpoint of its work directory unless one is given.

    Without any this is a first start, from the config's ``load_from``. Call it where the lock of
    :func:`work_dir_of` is held, or leave it to :func:`train`: no other run then writes a newer one.
    In a distributed run the first rank chooses, and the runner tells the others.

    Raises:
        UserError: As :func:`find_resumable`; or if the run in the work directory has no checkpoint
            yet, and started from other weights.
    """
    if checkpoint is None:
        if not is_first_rank(cfg.get('launcher', 'none')):
            return
        allow_changes = (cfg.get('train_cfg') or {}).get('allow_changes', False)
        checkpoint = checkpoint_or_first_start(
            cfg.work_dir, _checkpoint_folder(cfg), cfg.get('load_from'), allow_changes
        )
    if checkpoint is not None:
        cfg.resume, cfg.load_from = True, str(checkpoint)


def _resume(cfg: Config, checkpoint: str | Path | bool) -> None:
    if checkpoint:
        resume(cfg, None if checkpoint is True else checkpoint)


def _checkpoint_folder(cfg: Config) -> str:
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    return checkpoint_folder(cfg.work_dir, hook.get('out_dir'))


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
