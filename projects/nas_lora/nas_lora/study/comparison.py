"""One training of the study, from its config to its record."""

import math
import time
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.registry import RUNNERS
from PIL import Image
from torch import nn

from tas_lora.image_formats import open_image

from ..cells.choices import choices
from ..cells.linear import NASLoRALinear
from ..evaluation import Scorer
from .methods import Run
from .records import rounded

MASKS = 'masks.png'


def train_and_measure(run: Run, cfg: Config, folder: Path) -> dict:
    """Train, score on val and test, and record the results.

    Args:
        run: Of the study.
        cfg: Config of the run.
        folder: Folder for config, checkpoint, logs and predicted masks.

    Returns:
        The record: scores, mean loss of each epoch, parameters, time, choices.
    """
    model, losses, seconds = train(cfg, folder, run.name)
    scores = {part: Scorer(cfg, part)(model) for part in ('val', 'test')}
    if 'iou' in scores['test']:
        write_masks(Scorer(cfg).masks(model).numpy(), folder / MASKS)
    part = model.get_submodule(f'model.{cfg.model.get("part", "encoder")}')
    record = dict(
        run=run.name,
        data=run.data,
        method=run.method,
        seed=run.seed,
        rates=rates_of(cfg),
        epochs=cfg.train_cfg.max_epochs,
        trainable=trainable(model),
        trainable_in_encoder=trainable(part),
        cpu_seconds_per_epoch=seconds / cfg.train_cfg.max_epochs,
        losses=losses,
        scores=scores,
        choices=choices(model) if _has_cells(model) else {},
    )
    return rounded(record)


def train(cfg: Config, folder: Path, name: str) -> tuple[nn.Module, list[float], float]:
    """Train without validation; write the config, and a checkpoint at the end.

    Returns:
        The model, the mean loss of each epoch, and the CPU time in seconds. Other programs disturb
        CPU time less than wall-clock time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cfg.dump(folder / 'config.py')
    cfg = cfg.copy()
    cfg.merge_from_dict(dict(work_dir=str(folder), experiment_name=f'{name}_{time.time_ns()}'))
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.test_cfg = cfg.test_dataloader = cfg.test_evaluator = None
    cfg.default_hooks.checkpoint.interval = cfg.train_cfg.max_epochs
    cfg.log_level = 'WARNING'
    runner = RUNNERS.build(cfg)
    started = time.process_time()
    model = runner.train()
    seconds = time.process_time() - started
    history = runner.message_hub.get_scalar('train/loss').data[0]
    epochs = np.array_split(np.asarray(history, dtype=float), cfg.train_cfg.max_epochs)
    return model, [float(part.mean()) for part in epochs], seconds


def trainable(model: nn.Module) -> int:
    """Number of parameters that any stage trains, including architecture parameters."""
    alphas = {id(p) for n, p in model.named_parameters() if n.endswith('alpha')}
    return sum(p.numel() for p in model.parameters() if p.requires_grad or id(p) in alphas)


def rates_of(cfg: Config) -> dict[str, float]:
    """Learning rates: of the weights and, where they differ, of the others."""
    wrapper = cfg.optim_wrapper
    if 'weights' in wrapper:
        return {part: wrapper[part].optimizer.lr for part in ('weights', 'alpha')}
    rate, keys = wrapper.optimizer.lr, (wrapper.get('paramwise_cfg') or {}).get('custom_keys', {})
    return dict(weights=rate) | {key: rate * value['lr_mult'] for key, value in keys.items()}


def write_masks(probabilities: np.ndarray, path: Path) -> None:
    """Write probabilities (n, H, W) side by side as one grey image."""
    grey = np.rint(255 * np.concatenate(list(probabilities), axis=1)).astype(np.uint8)
    Image.fromarray(grey).save(path, optimize=True)


def read_masks(path: Path) -> np.ndarray:
    """Read a file of :func:`write_masks`: (n, H, H) from 0 to 1."""
    grey = np.asarray(open_image(path)) / 255
    return np.stack(np.split(grey, math.ceil(grey.shape[1] / grey.shape[0]), axis=1))


def _has_cells(model: nn.Module) -> bool:
    return any(isinstance(module, NASLoRALinear) for module in model.modules())
