"""From a config to a running job: thin functions behind the tools."""

import inspect
from importlib.util import find_spec
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.registry import LOOPS, MODELS, init_default_scope

from .atomic_files import checkpoints_in, is_damaged, newest_whole
from .config import addressed, check_data, load_config
from .engine import SubnetTestLoop, SupernetRunner
from .engine.search import test_chosen
from .errors import UserError, blame
from .models import SupernetClassifier
from .models.safe_load import read_state_dict
from .report.page import write_report
from .structures import Subnet


def load_supernet(
    config: str | Path | Config | dict,
    checkpoint: str | Path | None = None,
    device: str | torch.device = 'cpu',
) -> SupernetClassifier:
    """Build a supernet, ready to evaluate.

    Args:
        config: A config with a ``model``: its path, or itself.
        checkpoint: A checkpoint of ours, an official AutoFormer file, or the
            ``weights.safetensors`` of an exported subnet. Weights of a bare supernet fit a model
            with experts, which then start fresh.
        device: Where to put the model.

    Returns:
        The model in evaluation mode. ``set_subnet(subnet)`` chooses a subnet,
        ``model(images, mode='tensor')`` gives its logits, experts merged.

    Raises:
        UserError: If config or checkpoint do not exist, or do not fit each other.
    """
    if isinstance(config, (str, Path)):
        config = load_config(config)
    init_default_scope(config.get('default_scope', 'mmpretrain'))
    model_config = dict(config['model'])
    if config.get('data_preprocessor') is not None:
        model_config.setdefault('data_preprocessor', config['data_preprocessor'])
    with addressed(dict(model=config['model'])), blame('the model cannot be built'):
        model = MODELS.build(model_config)
    if checkpoint is not None:
        model.load_state_dict(read_state_dict(checkpoint))
    return model.to(device).eval()


def prepare_training(cfg: Config) -> SupernetRunner:
    """A runner with all built that a training needs.

    Raises:
        UserError: Where config, data or checkpoint will not do.
    """
    check_data(cfg, ('train_dataloader', 'val_dataloader'))
    check_checkpoint_file(
        cfg.get('load_from'),
        'train the stage before, or give another by --cfg-options load_from=FILE',
    )
    return _prepared(cfg, 'train', 'val')


def check_training(cfg: Config) -> None:
    """Build all that a training needs, and read its checkpoint, but do not train."""
    runner = prepare_training(cfg)
    runner.call_hook('before_run')  # where hooks check, or make what they load into
    if cfg.get('load_from') and not cfg.get('resume'):
        runner.load_checkpoint(cfg.load_from)


def train(cfg: Config) -> None:
    """Train as ``cfg`` says."""
    prepare_training(cfg).train()


def prepare_search(cfg: Config, checkpoint: str | Path) -> SupernetRunner:
    """A runner with all built that a search needs.

    Raises:
        UserError: Where config, data or checkpoint will not do.
    """
    check_data(cfg, ('val_dataloader',))
    check_checkpoint_file(checkpoint, 'check the path')
    cfg.load_from = str(checkpoint)
    return _prepared(cfg, 'val')


def check_search(cfg: Config, checkpoint: str | Path, test: bool = False) -> None:
    """Build all that a search needs, and read its checkpoint, but do not search."""
    if test:
        _check_test(cfg)
    prepare_search(cfg, checkpoint).load_checkpoint(str(checkpoint))


def search(
    cfg: Config, checkpoint: str | Path, test: bool = False, report: bool = False
) -> dict[str, float]:
    """Search with the weights of ``checkpoint``; returns score and costs of the best subnet.

    Args:
        cfg: A search config.
        checkpoint: The weights.
        test: At the end, read the test set once, for the subnets that were chosen.
        report: Draw the search: ``report.html`` and figures in the work directory.
    """
    if test:
        _check_test(cfg)
    runner = prepare_search(cfg, checkpoint)
    metrics = runner.val()
    if test:
        metrics = metrics | test_chosen(runner)
    if report and is_main_process():
        runner.logger.info(f'Report: {write_report(runner.work_dir)}')
    return metrics


def evaluate(cfg: Config, checkpoint: str | Path, subnets: dict | None = None) -> dict:
    """Test the weights of ``checkpoint``; returns the metrics.

    Args:
        cfg: A config with a test set.
        checkpoint: The weights.
        subnets: Subnets to test by name, in place of those of ``cfg.test_cfg``.
    """
    if cfg.get('test_cfg') is None:
        raise UserError('this config tests nothing: it has no test_cfg')
    check_data(cfg, ('test_dataloader',))
    check_checkpoint_file(checkpoint, 'check the path')
    cfg.load_from = str(checkpoint)
    if subnets:
        if cfg.test_cfg.get('type') in (None, 'TestLoop'):
            raise UserError(
                'this config tests one network, its model.backbone.arch; leave the subnets out, '
                'or give a config with a tas_lora.SubnetTestLoop'
            )
        cfg.test_cfg.subnets = {
            name: s.to_dict() if isinstance(s, Subnet) else s for name, s in subnets.items()
        }
    return _prepared(cfg, 'test').test()


def _prepared(cfg: Config, *stages: str) -> SupernetRunner:
    """A runner with all built that the stages need."""
    if Path(cfg.get('work_dir') or '.').is_file():
        raise UserError(f'work_dir {cfg.work_dir} is a file; give a folder by --work-dir')
    if cfg.get('launcher', 'none') == 'pytorch' and not torch.cuda.is_available():
        use_gloo(cfg)
    if find_spec('tensorboard') is not None:
        _add_tensorboard(cfg)
    with addressed(cfg):
        with blame('the model or the runner cannot be built'):
            runner = SupernetRunner.from_cfg(cfg)
        runner.prepare(*stages)
        return runner


def _check_test(cfg: Config) -> None:
    """Refuse what could not be tested at the end of a search, before it begins."""
    if cfg.get('test_cfg') is None:
        raise UserError('this config tests nothing: it has no test_cfg')
    loop = cfg.test_cfg.get('type')
    loop = LOOPS.get(loop) if isinstance(loop, str) else loop
    if not (inspect.isclass(loop) and issubclass(loop, SubnetTestLoop)):
        raise UserError("--test needs test_cfg=dict(type='tas_lora.SubnetTestLoop', ...)")
    check_data(cfg, ('test_dataloader',))


def _add_tensorboard(cfg: Config) -> None:
    """Scalars go to TensorBoard, too, unless the config says where they go."""
    backends = (cfg.get('visualizer') or {}).get('vis_backends')
    if backends == [dict(type='LocalVisBackend')]:
        cfg.visualizer.vis_backends = [*backends, dict(type='TensorboardVisBackend')]


def find_resumable(work_dir: str | Path) -> Path | None:
    """The checkpoint that a training in ``work_dir`` goes on from; None if there is none yet.

    Raises:
        UserError: If there are some, but all are damaged.
    """
    found, files = newest_whole(work_dir), checkpoints_in(work_dir)
    if files and found is None:
        raise UserError(f'{work_dir} has no whole checkpoint to resume from, {files[0]} is damaged')
    return found


def check_checkpoint_file(path: str | Path | None, advice: str) -> None:
    """Refuse a checkpoint that is not there, or is not what was written."""
    if not path or '://' in str(path):
        return
    path = Path(str(path))
    if not path.is_file():
        what = 'is no file' if path.exists() else 'does not exist'
        raise UserError(f'checkpoint {path} {what}; {advice}')
    if is_damaged(path):
        whole = newest_whole(path.parent)
        hint = f'the newest whole one beside it is {whole}' if whole else advice
        raise UserError(f'checkpoint {path} is damaged (cut short or changed); {hint}')


def use_gloo(cfg: Config) -> None:
    """Distributed on CPUs: MMEngine would ask for CUDA devices."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
