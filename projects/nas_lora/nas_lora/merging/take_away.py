"""Fold or merge the adapters of a model at one of four levels, and measure the effect.

- ``fold``: each cell becomes a small convolution next to its frozen layer; exact, cheap, not free.
- ``exact``: merge into the frozen weights; only possible if no operation reads neighbours.
- ``least_squares``: merge any operation, each layer as the closest linear one; lossy.
- ``distilled``: so too, and then bring the whole network's outputs to what they were; lossy.
"""

import time
from collections.abc import Callable, Iterable
from copy import deepcopy
from pathlib import Path

import torch
from mmengine.config import Config
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tas_lora import UserError
from tas_lora.checks import one_of
from tas_lora.costs.timing import ratio

from ..cells.fold import FoldedCell, fold, nas_lora_layers
from ..cpu_time import cpu_seconds
from ..evaluation import Scorer, calibration_images, images_of
from ..registry import MODELS
from .merge import merge_exact, merge_least_squares
from .merge_distilled import merge_distilled

LOSSY = dict(least_squares=merge_least_squares, distilled=merge_distilled)
LEVELS = ('fold', 'exact', *LOSSY)
CALIBRATION = 320  # images; at 64 tokens each, 53 times the width of ViT-S
COMPARED = 64  # images


def adapted_part(model: nn.Module) -> nn.Module:
    """The part of an ``AdaptedModel`` that holds the adapters, such as its encoder."""
    return model.model.get_submodule(model.part)


def take_away(
    model: nn.Module, level: str, batches: Callable[[], Iterable[Tensor]] = tuple
) -> tuple[nn.Module, dict[str, float]]:
    """Copy ``model`` and fold or merge the copy; the model itself is unchanged.

    Args:
        model: An ``AdaptedModel`` with :class:`NASLoRALinear` layers in its part.
        level: One of :data:`LEVELS`.
        batches: Returns the batches (B, 3, H, W) of images that lossy levels are fitted to.

    Returns:
        The copy, in evaluation mode, and R^2 of each layer for lossy levels (else empty).

    Raises:
        UserError: If an operation prevents the level, with the names of operation and layer; or if
            the model has no such layer.
    """
    one_of(level, '--level', LEVELS)
    nas_lora_layers(model)  # raises first if the model is not adapted
    taken = deepcopy(model)
    taken.eval()
    if level in LOSSY:
        return taken, LOSSY[level](adapted_part(taken), batches()).r2
    (fold if level == 'fold' else merge_exact)(adapted_part(taken))
    return taken, {}


def without_adapters(model: nn.Module) -> nn.Module:
    """Copy ``model`` with its adapters dropped: what a merge would lose at worst."""
    dropped = deepcopy(model)
    dropped.eval()
    part = adapted_part(dropped)
    for name, layer in nas_lora_layers(part).items():
        part.set_submodule(name, layer.base)
    return dropped


def levels_of(
    model: nn.Module, cfg: Config, part: str = 'test', images: int = CALIBRATION
) -> dict[str, dict]:
    """Scores of a model at each level, and without its adapters; or the reason for a refusal.

    Tests once for each level that is not refused. With 320 images of 112 pixels, DINOv2-small and
    one core, least squares takes 16 seconds and distillation 61.

    Args:
        model: As for :func:`take_away`.
        cfg: Its config, with any metric.
        part: 'val' or 'test'.
        images: Number of calibration images; all lossy levels see the same.

    Returns:
        For 'dropped' and each level: ``scores``, ``difference``, see :class:`Differences`,
        ``seconds`` of the merge, and R^2 by layer as ``r2`` for lossy levels; or ``refused``.
    """
    scorer, batches = Scorer(cfg, part), list(calibration_images(cfg, model, images))
    dropped = without_adapters(model)
    differences = Differences(model, dropped, images_of(cfg, model, part, COMPARED))
    found = dict(dropped=dict(scores=scorer(dropped), difference=1.0))
    for level in LEVELS:
        start = time.perf_counter()
        try:
            taken, r2 = take_away(model, level, lambda: batches)
        except UserError as error:
            found[level] = dict(refused=str(error))
            continue
        seconds = time.perf_counter() - start
        found[level] = dict(scores=scorer(taken), difference=differences(taken), seconds=seconds)
        found[level] |= dict(r2=r2) if r2 else {}
    return found


class Differences:
    """How far a model's part is from the adapted one, as a share of what its adapters change.

    ||f - f_adapted||^2 / ||f_dropped - f_adapted||^2 over the last outputs f of the part: 0 if the
    merge is exact, 1 if it is worth nothing.

    Args:
        model: The adapted model.
        dropped: The same without adapters.
        batches: Images (B, 3, H, W).
    """

    def __init__(self, model: nn.Module, dropped: nn.Module, batches: Iterable[Tensor]):
        self.batches = list(batches)
        self.adapted = self._outputs(model)
        self.largest = self._distance(dropped)

    def __call__(self, model: nn.Module) -> float:
        """The share for another model."""
        return self._distance(model) / self.largest

    def _distance(self, model: nn.Module) -> float:
        pairs = zip(self._outputs(model), self.adapted, strict=True)
        return sum(float((one - other).square().sum()) for one, other in pairs)

    @torch.no_grad()
    def _outputs(self, model: nn.Module) -> list[Tensor]:
        part = adapted_part(model)
        return [part(batch)[-1] for batch in self.batches]


def plain_model(model: nn.Module, cfg: Config) -> nn.Module:
    """Build the model inside an ``AdaptedModel`` without adapters, from a merged one's weights.

    Raises:
        UserError: If the model has modules that a plain one lacks, such as a folded cell.
    """
    plain = MODELS.build(_untrained(cfg))
    try:
        plain.load_state_dict(plain_weights(model))
    except RuntimeError as error:
        raise UserError(f'the model is not merged: {" ".join(str(error).split())[:300]}') from error
    plain.eval()
    return plain


def plain_encoder(cfg: Config) -> nn.Module:
    """Build the adapted part of a config's model, without adapters."""
    encoder = MODELS.build(cfg.model.model[cfg.model.get('part', 'encoder')])
    encoder.eval()  # returns None
    return encoder


def _untrained(cfg: Config) -> dict:
    """Config of the plain model, which reads no file of a SAM."""
    model = dict(cfg.model.model)
    return model | dict(pretrained=None) if 'pretrained' in model else model


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
    model = MODELS.build(dict(cfg.model, model=_untrained(cfg)))
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


def costs(
    models: dict[str, nn.Module], base: str, images: Tensor, rounds: int = 30
) -> dict[str, dict]:
    """Parameters of encoders, and their CPU time relative to one of them.

    Args:
        models: Encoders of one image size, by name.
        base: Name of the encoder to compare with.
        images: What they run on, (B, 3, H, W).
        rounds: Number of runs of each; encoders take turns.

    Returns:
        For each name: ``parameters``, and ``time``: median and middle half of the ratios per round.
    """

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
