"""From a config to a running job: the functions that the tools call."""

import inspect
from importlib.util import find_spec
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import LOOPS

from .atomic_files import checkpoints_in, is_damaged, newest_whole
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
from .engine.search import test_chosen
from .errors import UserError, blame
from .models import load_supernet
from .report.page import write_report
from .structures import Subnet

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
        UserError: Naming the part of the config that fails, and why.
    """
    _check_work_dir(cfg)
    with scratch_config(cfg) as scratch, addressed(cfg):
        rehearse_training(prepare_training(scratch, RehearsalRunner))


def train(cfg: Config) -> None:
    """Train according to ``cfg``."""
    runner = prepare_training(cfg)
    with addressed(cfg):
        check_monitors_early(runner)
    runner.train()


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
    runner = prepare_search(cfg, checkpoint)
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


def find_resumable(work_dir: str | Path) -> Path | None:
    """The checkpoint from which training in ``work_dir`` resumes; None if there is none yet.

    Raises:
        UserError: If there are checkpoints, but all are damaged.
    """
    found, files = newest_whole(work_dir), checkpoints_in(work_dir)
    if files and found is None:
        raise UserError(
            f'{work_dir} has no intact checkpoint to resume from, {files[0]} is damaged'
        )
    return found


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
