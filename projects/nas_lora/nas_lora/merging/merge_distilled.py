"""Merge cells of any kind by least squares, and then bring the whole network to what it was.

A layer's own fit (:mod:`.merge`) keeps what a token tells of its neighbours. But what they would
add can also come from elsewhere: an earlier layer's attention can fetch it. So a few gradient steps
on all merged layers at once go on from the fits, towards the adapted network's outputs for the same
images: distillation of features (Romero et al. 2015), without labels.
"""

from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..cells.fold import nas_lora_layers
from .merge import MergeReport, merge_least_squares

STEPS, RATE = 60, 0.005
_HELD_OUT = 8  # one batch in so many is not trained on
_REPORTED = 20  # steps between two lines


def merge_distilled(
    model: nn.Module,
    batches: Iterable[Tensor],
    evaluate: Callable[[], float] | None = None,
    run: Callable[[Tensor], Tensor] | None = None,
    steps: int = STEPS,
    rate: float = RATE,
) -> MergeReport:
    """Merge as :func:`.merge.merge_least_squares`, then train the merged layers on the old outputs.

    One batch in eight, at least one, is held out from the steps. If they do not lower the error
    there, they are taken back. Where a small training set repeats, its images are in both, so the
    error is not that on new images. The steps have far more weights than least squares to fit, so
    they gain most where there are many images, or where least squares loses much.

    Args:
        model: An encoder with :class:`NASLoRALinear`, or a model that holds one; changed in place
            and run in evaluation mode.
        batches: Calibration inputs, two batches or more.
        evaluate: As in :func:`.merge.merge_least_squares`.
        run: Gives the outputs that matter for a batch; by default the last of ``model(batch)``.
        steps: Of Adam, a batch each.
        rate: Its learning rate for a layer, times the root mean square of the weights and divided
            by the root of the width I: about the largest share of the layer's output that a step
            changes. It falls to zero as a half cosine.

    Returns:
        R^2 of the independent fits, the metrics, and ``errors``: the share of the outputs' variance
        on the held-out batches that is lost, without and with the steps.

    Raises:
        UserError: As :func:`.merge.merge_least_squares`.
    """
    names, batches = list(nas_lora_layers(model)), list(batches)
    run = run or (lambda batch: _last(model(batch)))
    before = evaluate() if evaluate else None
    was_training = model.training
    model.eval()
    with torch.no_grad():
        pairs = [(batch, run(batch)) for batch in batches]
        r2 = merge_least_squares(model, batches, run=run).r2
    held_out = pairs[::_HELD_OUT]
    kept = [pair for i, pair in enumerate(pairs) if i % _HELD_OUT] or pairs
    layers = nn.ModuleList(model.get_submodule(name) for name in names)
    errors = _distil(layers, run, kept, held_out, steps, rate)
    model.train(was_training)
    return MergeReport(r2, before, evaluate() if evaluate else None, errors)


def _last(output: Tensor | tuple | list) -> Tensor:
    return output if isinstance(output, Tensor) else output[-1]


def _distil(layers, run, pairs, held_out, steps: int, rate: float) -> tuple[float, float]:
    """Train the layers; the lost share of held-out variance without and with it."""
    start, first = deepcopy(layers.state_dict()), _lost(run, held_out)
    asked = [p.requires_grad for p in layers.parameters()]
    layers.requires_grad_(True)
    rates = [rate * _rms(layer.weight) / layer.in_features**0.5 for layer in layers]
    groups = [dict(params=layer.parameters(), lr=lr) for layer, lr in zip(layers, rates)]  # noqa: B905
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step, (batch, target) in enumerate(_repeated(pairs, steps)):
        loss = _error(run(batch), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % _REPORTED == 0:
            print_log(f'merge(distilled): step {step} of {steps}, lost {loss:.2e}', 'current')
    for parameter, was_asked in zip(layers.parameters(), asked, strict=True):
        parameter.requires_grad_(was_asked).grad = None
    last = _lost(run, held_out)
    if not last < first:
        layers.load_state_dict(start)
        last = first
    return first, last


def _rms(weight: Tensor) -> float:
    return float(weight.detach().square().mean().sqrt())


def _repeated(pairs: list, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """So many pairs, in an order that is drawn anew for each pass, the same in every call."""
    generator = torch.Generator().manual_seed(0)
    order: list[int] = []
    for _ in range(steps):
        order = order or torch.randperm(len(pairs), generator=generator).tolist()
        yield pairs[order.pop()]


def _error(output: Tensor, target: Tensor) -> Tensor:
    """Share of the target's variance that the output loses."""
    return (output - target).square().mean() / target.var()


@torch.no_grad()
def _lost(run: Callable, pairs: list[tuple[Tensor, Tensor]]) -> float:
    return float(torch.stack([_error(run(batch), target) for batch, target in pairs]).mean())
