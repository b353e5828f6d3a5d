"""Fold or merge the adapters of a model at one of three levels, and measure the effect.

- ``fold``: each cell becomes a small convolution next to its frozen layer; exact, cheap, not free.
- ``exact``: merge into the frozen weights; only possible if no operation reads neighbours.
- ``least_squares``: merge any operation, as the closest linear layer; lossy.
"""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import torch
from mmengine.config import Config
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tas_lora import UserError
from tas_lora.checks import one_of
from tas_lora.costs.timing import ratio

from .cpu_time import cpu_seconds
from .evaluation import Scorer, calibration_images
from .fold import FoldedCell, fold, nas_lora_layers
from .merge import merge_exact, merge_least_squares
from .registry import MODELS

LEVELS = ('fold', 'exact', 'least_squares')
CALIBRATION = 160  # images; at 64 tokens each, about 150 times the tiny SAM's width


def take_away(
    model: nn.Module, level: str, batches: Callable[[], object] = tuple
) -> tuple[nn.Module, dict[str, float]]:
    """Copy ``model`` and fold or merge the copy; the model itself is unchanged.

    Args:
        model: An ``AdaptedModel`` around a ``SAMSegmentor``, with :class:`NASLoRALinear` layers.
        level: One of :data:`LEVELS`.
        batches: Returns the batches (B, 3, H, W) of images for the least-squares fit.

    Returns:
        The copy, in evaluation mode, and R^2 of each layer for least squares (else empty).

    Raises:
        UserError: If an operation prevents the level, with the names of operation and layer; or if
            the model has no such layer.
    """
    one_of(level, '--level', LEVELS)
    nas_lora_layers(model)  # raises first if the model is not adapted
    taken = deepcopy(model)
    taken.eval()
    if level == 'least_squares':
        return taken, merge_least_squares(taken.model.encoder, batches()).r2
    (fold if level == 'fold' else merge_exact)(taken.model.encoder)
    return taken, {}


def levels_of(model: nn.Module, cfg: Config, part: str = 'test') -> dict[str, dict]:
    """Metrics of a model at each level, or the reason for a refusal.

    Returns:
        For each level: ``scores`` and, for least squares, ``r2`` by layer; or ``refused``.
    """
    scorer, found = Scorer(cfg, part), {}
    for level in LEVELS:
        try:
            taken, r2 = take_away(model, level, lambda: calibration_images(cfg, model, CALIBRATION))
        except UserError as error:
            found[level] = dict(refused=str(error))
        else:
            found[level] = dict(scores=scorer(taken)) | (dict(r2=r2) if r2 else {})
    return found


def plain_model(model: nn.Module, cfg: Config) -> nn.Module:
    """Build a ``SAMSegmentor`` without adapters from the weights of a merged model.

    Raises:
        UserError: If the model has modules that a plain one lacks, such as a folded cell.
    """
    plain = MODELS.build(cfg.model.model | dict(pretrained=None))
    try:
        plain.load_state_dict(plain_weights(model))
    except RuntimeError as error:
        raise UserError(f'the model is not merged: {" ".join(str(error).split())[:300]}') from error
    plain.eval()
    return plain


def plain_encoder(cfg: Config) -> nn.Module:
    """Build the encoder of an adapted model's config without adapters, with random weights."""
    encoder = MODELS.build(cfg.model.model.encoder)
    encoder.eval()  # returns None
    return encoder


def plain_weights(model: nn.Module) -> dict[str, Tensor]:
    """All weights of the model inside an ``AdaptedModel``, including frozen ones, by its names."""
    return {name: value.detach().clone() for name, value in model.model.state_dict().items()}


def save_taken(model: nn.Module, path: Path) -> None:
    """Write :func:`plain_weights` as safetensors."""
    save_file({n: v.contiguous() for n, v in plain_weights(model).items()}, path)


def load_folded(cfg: Config, path: str | Path) -> nn.Module:
    """Load a model with folded cells from a file of ``save_taken``.

    Args:
        cfg: The config of its training.
        path: The file.

    Raises:
        UserError: If the file does not fit the config.
    """
    inner = dict(cfg.model.model, pretrained=None)
    model = MODELS.build(dict(cfg.model, model=inner))
    weights = load_file(path)
    for name, layer in nas_lora_layers(model.model).items():
        for part, branch in layer.branches.items():
            kernel = weights.get(f'{name}.branches.{part}.cell.weight')
            if kernel is None:
                raise UserError(f'{path} has no folded cell for {name}.{part}; merge.py writes one')
            branch.cell = FoldedCell(kernel, ('a folded operation',) * (kernel.shape[-1] > 1))
    try:
        model.model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f'{path} does not fit: {" ".join(str(error).split())[:300]}') from error
    model.eval()
    return model


def costs(models: dict[str, nn.Module], base: str, rounds: int = 30) -> dict[str, dict]:
    """Parameters of encoders, and their CPU time relative to one of them.

    Args:
        models: Encoders of one image size, by name.
        base: Name of the encoder to compare with.
        rounds: Number of runs of each; encoders take turns.

    Returns:
        For each name: ``parameters``, and ``time``: median and middle half of the ratios per round.
    """
    encoder = models[base]
    images = torch.randn(4, 3, *encoder.img_size)

    def job(model: nn.Module) -> Callable[[], object]:
        def run():
            with torch.no_grad():
                return model(images)

        return run

    seconds = cpu_seconds({name: job(model) for name, model in models.items()}, rounds)
    return {
        name: dict(
            parameters=sum(p.numel() for p in model.parameters()),
            time=ratio(seconds[name], seconds[base]),
        )
        for name, model in models.items()
    }
