"""Time to train and evaluate subnets of a supernet, and the memory of a step."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..models import SupernetClassifier
from ..structures import Subnet
from .reference_models import loss_of, training_step
from .timing import interleave, saved_bytes, stopwatch


def time_steps(
    model: SupernetClassifier,
    subnets: Mapping[str, Subnet],
    batch: tuple[Tensor, Tensor],
    rounds: int,
    amp: bool = False,
    tell: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of training steps of each subnet; subnets take turns.

    Updates the weights of ``model``, which must be in training mode. Calls ``tell`` after each
    step; ``amp`` uses bfloat16 autocast.
    """
    step = training_step(model, *batch, amp)

    def job(subnet: Subnet) -> None:
        model.set_subnet(subnet)
        step()
        tell()

    jobs = {name: partial(job, subnet) for name, subnet in subnets.items()}
    return interleave(jobs, rounds, batch[0].device.type)


@torch.no_grad()
def time_evaluations(
    model: SupernetClassifier,
    subnets: Mapping[str, Subnet],
    images: Tensor,
    rounds: int,
    tell: Callable[[], object] = lambda: None,
) -> dict[str, dict[str, list[float]]]:
    """Seconds to merge the experts of each subnet, and of a forward afterwards.

    Leaves the model in evaluation mode.

    Returns:
        ``merge``, near 0 without experts, and ``forward``, each by name of the subnet.
    """
    model.eval()
    device = images.device.type
    found = {part: {name: [] for name in subnets} for part in ('merge', 'forward')}
    for turn in range(rounds + 1):
        for name, subnet in subnets.items():
            model.set_subnet(subnet)
            merge = stopwatch(model.merge_experts, device)
            forward = stopwatch(lambda: model(images), device)
            if turn:  # the first round is the warm-up
                found['merge'][name].append(merge)
                found['forward'][name].append(forward)
            tell()
    model.unmerge_experts()
    return found


def try_reading(dataset: Sequence, most: int = 64) -> dict:
    """Time to read and transform an image, and statistics of its pixels.

    Reads up to ``most`` samples, evenly spread, with ``inputs`` (C, H, W).

    Returns:
        ``reading``, seconds per image, and ``mean`` and ``std`` of each channel as read.
    """
    places = np.linspace(0, len(dataset) - 1, min(most, len(dataset))).astype(int).tolist()
    images = []
    seconds = stopwatch(lambda: images.extend(dataset[place]['inputs'] for place in places))
    pixels = torch.cat([image.flatten(1) for image in images], dim=1).double()
    std, mean = torch.std_mean(pixels, dim=1)
    return dict(reading=seconds / len(places), mean=mean.tolist(), std=std.tolist())


def step_memory(
    model: SupernetClassifier, subnet: Subnet, batch: tuple[Tensor, Tensor], amp: bool = False
) -> int:
    """Bytes of tensors that a training step of ``subnet`` holds when its backward begins.

    Counts all weights, gradients and AdamW's two moments of the trained ones, the images, and what
    autograd keeps. Excludes memory of libraries and what the allocator keeps in reserve.
    """
    model.set_subnet(subnet)
    weights = sum(p.nbytes for p in model.parameters())
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    return (
        weights
        + 3 * trained
        + batch[0].nbytes
        + saved_bytes(model, partial(loss_of, model, *batch, amp))
    )
