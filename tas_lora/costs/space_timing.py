"""How long subnets of a supernet take to train and to evaluate, and what memory a step needs."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..models import SupernetClassifier
from ..structures import Subnet
from .reference_models import training_step
from .timing import interleave, saved_bytes, stopwatch


def time_steps(
    model: SupernetClassifier,
    subnets: Mapping[str, Subnet],
    batch: tuple[Tensor, Tensor],
    rounds: int,
    amp: bool = False,
    tell: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of whole training steps of each subnet, in turns.

    Args:
        model: In training mode; its weights are moved.
        subnets: By name.
        batch: Images and labels, where the model is.
        rounds: Steps of each that are timed.
        amp: bfloat16 autocast.
        tell: Called after each step.
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
    """Seconds to merge the experts of each subnet and of a forward then, in turns.

    Other arguments as in :func:`time_steps`. The model is left in evaluation mode.

    Returns:
        ``merge``, nearly nothing without experts, and ``forward``, each by name of the subnet.
    """
    model.eval()
    device = images.device.type
    found = {part: {name: [] for name in subnets} for part in ('merge', 'forward')}
    for turn in range(rounds + 1):
        for name, subnet in subnets.items():
            model.set_subnet(subnet)
            merge = stopwatch(model.merge_experts, device)
            forward = stopwatch(lambda: model(images), device)
            if turn:  # the first warms up
                found['merge'][name].append(merge)
                found['forward'][name].append(forward)
            tell()
    model.unmerge_experts()
    return found


def try_reading(dataset: Sequence, most: int = 64) -> dict:
    """How long an image takes to be read and transformed, and what its pixels are.

    Args:
        dataset: Of samples with ``inputs`` (C, H, W).
        most: Images that are read, evenly spread.

    Returns:
        ``reading``, seconds an image, and ``mean`` and ``std`` of each channel as they are read.
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

    All weights, gradients and AdamW's two moments of those that are trained, the images, and what
    autograd keeps. Not counted is what libraries take, and an allocator keeps in reserve.
    """
    model.set_subnet(subnet)

    def loss() -> Tensor:
        with torch.autocast(batch[0].device.type, torch.bfloat16, enabled=amp):
            return F.cross_entropy(model(batch[0]), batch[1])

    weights = sum(p.nbytes for p in model.parameters())
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    return weights + 3 * trained + batch[0].nbytes + saved_bytes(model, loss)
