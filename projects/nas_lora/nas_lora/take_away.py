"""Take an adapted model away at one of three levels, and say what that did to it.

- ``fold``: each cell one small convolution beside its frozen layer; exact, cheap, not free.
- ``exact``: all in the frozen weights; possible only where no operation looks at neighbours.
- ``least_squares``: the same for any operation, by the nearest linear layer; lossy.
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
CALIBRATION = 160  # images; at 64 tokens each some 150 times the tiny SAM's width


def take_away(
    model: nn.Module, level: str, batches: Callable[[], object] = tuple
) -> tuple[nn.Module, dict[str, float]]:
    """A copy of ``model`` at a level; the model itself stays as it is.

    Args:
        model: An ``AdaptedModel`` around a ``SAMSegmentor``, with :class:`NASLoRALinear` layers.
        level: One of :data:`LEVELS`.
        batches: Gives the images that least squares are fitted on, batches (B, 3, H, W).

    Returns:
        The copy, in evaluation mode; and R^2 of each layer for least squares, else nothing.

    Raises:
        UserError: If an operation is in the way of the level, by its name and the layer's; or
            there is no such layer.
    """
    one_of(level, '--level', LEVELS)
    nas_lora_layers(model)  # before a part is looked for that only an adapted model has
    taken = deepcopy(model)
    taken.eval()
    if level == 'least_squares':
        return taken, merge_least_squares(taken.model.encoder, batches()).r2
    (fold if level == 'fold' else merge_exact)(taken.model.encoder)
    return taken, {}


def levels_of(model: nn.Module, cfg: Config, part: str = 'test') -> dict[str, dict]:
    """What each level does to the metrics of a model; or who refuses, and why.

    Returns:
        By level: ``scores`` and, for least squares, ``r2`` by layer; or ``refused``.
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
    """A ``SAMSegmentor`` without adapters, with the weights of a merged model.

    Raises:
        UserError: If something in the model is not a plain one's, as a folded cell.
    """
    plain = MODELS.build(cfg.model.model | dict(pretrained=None))
    try:
        plain.load_state_dict(plain_weights(model))
    except RuntimeError as error:
        raise UserError(f'the model is not merged: {" ".join(str(error).split())[:300]}') from error
    plain.eval()
    return plain


def plain_encoder(cfg: Config) -> nn.Module:
    """The encoder of an adapted model's config without adapters, with random weights."""
    encoder = MODELS.build(cfg.model.model.encoder)
    encoder.eval()  # returns None
    return encoder


def plain_weights(model: nn.Module) -> dict[str, Tensor]:
    """All weights of the model inside an ``AdaptedModel``, frozen ones too, by its own names."""
    return {name: value.detach().clone() for name, value in model.model.state_dict().items()}


def save_taken(model: nn.Module, path: Path) -> None:
    """Write :func:`plain_weights`, as safetensors."""
    save_file({n: v.contiguous() for n, v in plain_weights(model).items()}, path)


def load_folded(cfg: Config, path: str | Path) -> nn.Module:
    """A model whose cells are folded, as ``save_taken`` wrote it.

    Args:
        cfg: The config it was trained by.
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
    """Parameters of encoders, and the time of a core over that of one of them.

    Args:
        models: Encoders of one image size, by name.
        base: Name of the one that the others are held against.
        rounds: How often each runs; all take turns.

    Returns:
        By name: ``parameters``, and ``time``: median of the ratios within rounds, middle half.
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
