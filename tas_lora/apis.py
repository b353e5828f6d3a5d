"""From a config to a running job: thin functions behind the tools."""

import json
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from .config_check import check_arguments, check_data, check_options
from .engine import SupernetRunner
from .errors import UserError
from .models import SupernetClassifier
from .models.checkpoint import read_state_dict
from .structures import Subnet


def load_config(path: str | Path, options: dict | None = None) -> Config:
    """Read a config, apply ``--cfg-options``, and refuse arguments that nothing takes."""
    if not Path(path).is_file():
        raise UserError(f'config {path} does not exist; configs are in configs/')
    cfg = Config.fromfile(path)
    check_options(cfg, options)
    cfg.merge_from_dict(options or {})
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    check_arguments(cfg)
    return cfg


def load_supernet(
    config: str | Path | Config | dict,
    checkpoint: str | Path | None = None,
    device: str | torch.device = 'cpu',
) -> SupernetClassifier:
    """Build a supernet, ready to evaluate.

    Args:
        config: A config with a ``model``: its path, or itself.
        checkpoint: A checkpoint of ours, or an official AutoFormer file. Weights of a bare
            supernet fit a model with experts, which then start fresh.
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
    model = MODELS.build(model_config)
    if checkpoint is not None:
        model.load_state_dict(read_state_dict(checkpoint))
    return model.to(device).eval()


def read_subnet(path: str | Path) -> Subnet:
    """A subnet from JSON: its dict, or a record with the field ``subnet``."""
    try:
        record = json.loads(Path(path).read_text())
    except OSError as error:
        raise UserError(f'subnet file {path} cannot be read: {error.strerror}') from error
    except ValueError as error:
        raise UserError(f'subnet file {path} is no JSON: {error}') from error
    if isinstance(record, dict) and 'subnet' in record:
        record = record['subnet']
    return Subnet.from_dict(record)


def check_training(cfg: Config) -> None:
    """Raise :class:`UserError` where data or checkpoint of a training are missing."""
    check_data(cfg, ('train_dataloader', 'val_dataloader'))
    _check_checkpoint(cfg)


def train(cfg: Config) -> None:
    """Train as ``cfg`` says."""
    check_training(cfg)
    _build_runner(cfg).train()


def search(cfg: Config, checkpoint: str | Path) -> dict:
    """Search with the weights of ``checkpoint``; returns score and costs of the best subnet."""
    check_data(cfg, ('val_dataloader',))
    cfg.load_from = str(checkpoint)
    return _build_runner(cfg).val()


def evaluate(cfg: Config, checkpoint: str | Path, subnets: dict | None = None) -> dict:
    """Test the weights of ``checkpoint``; returns the metrics.

    Args:
        cfg: A config with a test set.
        checkpoint: The weights.
        subnets: Subnets to test by name, in place of those of ``cfg.test_cfg``.
    """
    check_data(cfg, ('test_dataloader',))
    cfg.load_from = str(checkpoint)
    if subnets:
        cfg.test_cfg.subnets = {
            name: s.to_dict() if isinstance(s, Subnet) else s for name, s in subnets.items()
        }
    return _build_runner(cfg).test()


def _build_runner(cfg: Config) -> SupernetRunner:
    _check_checkpoint(cfg)
    if cfg.get('launcher', 'none') == 'pytorch' and not torch.cuda.is_available():
        _use_gloo(cfg)
    return SupernetRunner.from_cfg(cfg)


def _check_checkpoint(cfg: Config) -> None:
    path = cfg.get('load_from')
    if path and '://' not in path and not Path(path).is_file():
        raise UserError(
            f'checkpoint {path} does not exist; train the stage before, or give another by '
            '--cfg-options load_from=FILE'
        )


def _use_gloo(cfg: Config) -> None:
    """Distributed on CPUs: MMEngine would ask for CUDA devices."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
