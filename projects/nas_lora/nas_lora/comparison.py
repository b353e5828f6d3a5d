"""One training of the comparison, from its config to its record."""

import math
import time
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.registry import RUNNERS
from PIL import Image
from torch import nn

from tas_lora.image_formats import open_image

from .choices import choices
from .evaluation import Scorer
from .linear import NASLoRALinear
from .methods import METHODS, Run
from .take_away import levels_of


def train_and_measure(run: Run, cfg: Config, folder: Path) -> dict:
    """Train, score on val and test, and record the results.

    Args:
        run: Method, seed and rate.
        cfg: Config of the run.
        folder: Folder for checkpoint, logs and predicted masks.

    Returns:
        The record: scores, losses of the first and last epoch, parameters, time, choices.
    """
    model, losses, seconds = train(cfg, folder, run.name)
    scores = {part: Scorer(cfg, part)(model) for part in ('val', 'test')}
    write_masks(Scorer(cfg).masks(model).numpy(), folder / 'masks.png')
    return dict(
        run=run.name,
        method=run.method,
        label=METHODS[run.method],
        seed=run.seed,
        rate=rate_of(cfg),
        epochs=cfg.train_cfg.max_epochs,
        trainable=trainable(model),
        cpu_seconds_per_epoch=round(seconds / cfg.train_cfg.max_epochs, 4),
        losses=losses,
        scores=scores,
        choices=choices(model) if _is_adapted(model) else {},
        levels=levels_of(model, cfg) if _is_adapted(model) else {},
    )


def train(cfg: Config, folder: Path, name: str) -> tuple[nn.Module, list[float], float]:
    """Train without validation and write a checkpoint at the end.

    Returns:
        The model, the mean loss of each epoch, and the CPU time in seconds. Other programs disturb
        CPU time less than wall-clock time.
    """
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
    return model, [round(float(part.mean()), 4) for part in epochs], seconds


def trainable(model: nn.Module) -> int:
    """Number of parameters that any stage trains, including architecture parameters."""
    alphas = {id(p) for n, p in model.named_parameters() if n.endswith('alpha')}
    return sum(p.numel() for p in model.parameters() if p.requires_grad or id(p) in alphas)


def rate_of(cfg: Config) -> float:
    """Learning rate of the weights."""
    return cfg.optim_wrapper.get('weights', cfg.optim_wrapper).optimizer.lr


def write_masks(probabilities: np.ndarray, path: Path) -> None:
    """Write probabilities (n, H, W) side by side as one grey image."""
    grey = np.rint(255 * np.concatenate(list(probabilities), axis=1)).astype(np.uint8)
    Image.fromarray(grey).save(path, optimize=True)


def read_masks(path: Path) -> np.ndarray:
    """Read a file of :func:`write_masks`: (n, H, H) from 0 to 1."""
    grey = np.asarray(open_image(path)) / 255
    return np.stack(np.split(grey, math.ceil(grey.shape[1] / grey.shape[0]), axis=1))


def _is_adapted(model: nn.Module) -> bool:
    return any(isinstance(module, NASLoRALinear) for module in model.modules())
