"""Hours and cost of the three stages on a number of GPUs, from measured parts.

Reading, step and exchange of gradients run at the same time, so the slowest of them sets the pace:

    images/s = n x min(step, cores x reading, batch / n / exchange, batch / n / launching)
    exchange = 2 (n - 1) / n x bytes / bandwidth     (a ring of n GPUs)
    launching = kernels x time to launch one         (the host's share of a step)

All GPUs train the same subnet in an iteration, so none waits for a larger one. In a search they
evaluate different ones; how much that costs was simulated (docs/search.md).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..structures import Subnet
from .benchmark import supernet
from .reference_models import multiply_adds

STAGES = ('supernet', 'experts', 'search')
KINDS = dict(supernet='finetune', experts='ours')  # contestants of the benchmark


@dataclass(frozen=True)
class Assumptions:
    """What is not measured.

    Args:
        images: Training images of an epoch. Repeated augmentation reads each of them anew.
        validated: Images of a validation, for each of two subnets.
        candidates: Subnets of a search.
        held_out: Images that a candidate is scored on.
        race_share: Share of them that a race needs (docs/search.md: 0.31 to 0.37).
        search_speedup: Times as fast as one GPU, by number, simulated for AutoFormer-T.
        cores: Processor cores for each GPU; a process has at most ``workers`` readers.
        workers: ``num_workers`` of the configs.
        gpus_of_a_machine: GPUs that are joined by the fast network.
        bandwidth: Bytes a second that a GPU exchanges inside of a machine.
        network: The same between machines.
        launch: Seconds in which the host launches a kernel.
        kernels: Of a forward and of a merge, where none were counted on a GPU: operations of T on
            fake CUDA tensors (docs/speed.md, Kernel launches). A backward has twice as many.
        merge: Seconds to route and merge, where they were not measured.
        slices: Slices of images that a candidate of a race is evaluated on; each merges it anew.
        price: Dollars for a GPU hour.
    """

    images: int = 1_271_167
    validated: int = 50_000
    candidates: int = 1000
    held_out: int = 10_000
    race_share: float = 0.36
    search_speedup: tuple[tuple[int, float], ...] = ((1, 1.0), (8, 7.5), (64, 32.0))
    cores: int = 16
    workers: int = 8
    gpus_of_a_machine: int = 8
    bandwidth: float = 200e9
    network: float = 40e9
    launch: float = 5e-6
    kernels: tuple[int, int] = (544, 42)
    merge: float = 5e-3
    slices: float = 3.0
    price: float = 2.5


@dataclass(frozen=True)
class Recipe:
    """A stage of training, as its config has it."""

    epochs: int
    batch: int  # of all GPUs; a single one may accumulate
    val_interval: int


def sizes_of(model_config: Mapping, subnet: Subnet) -> dict:
    """Counted parts of a size: bytes of weights, gradients and checkpoints, products of an image.

    A checkpoint has the weights and AdamW's two moments of those that are trained; the router's
    SGD has none, which is neglected.
    """
    found = {}
    for stage, experts in (('supernet', False), ('experts', True)):
        model = supernet(model_config, experts=experts)
        weights = 4 * sum(p.numel() for p in model.parameters())
        trained = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
        found[stage] = dict(
            gradient_bytes=trained,
            checkpoint_bytes=weights + 2 * trained,
            products=multiply_adds(subnet, model.image_spec, KINDS[stage]),
        )
    found['search'] = dict(products=multiply_adds(subnet, model.image_spec))
    return found


def assumed_speeds(
    counted: Mapping[str, Mapping], rate: float, shares: Mapping[str, float], assumed: Assumptions
) -> dict:
    """Images a second of each stage, if it reaches a share of the device's matrix rate."""
    speeds = {stage: shares[stage] * rate / counted[stage]['products'] for stage in STAGES}
    forward, merge = assumed.kernels
    kernels = dict(supernet=3 * forward, experts=3 * (forward + merge))
    return speeds | dict(merge=assumed.merge, kernels=kernels)


def measured_speeds(records: Mapping[str, Mapping], size: str, batch: str = '256') -> dict | None:
    """The same from the records of ``tools/gpu_check.py``; None if some are missing.

    ``merge`` is the time to route and merge, in seconds for each candidate; ``kernels`` are those
    of an iteration, by stage, counted for T.
    """
    try:
        rows = records[f'speed_{size}_{batch}']['figures']['batches'][batch]
        merge = records['search']['figures']['sizes'][size]['merge_ms']['median'] / 1e3
        counts = records['launches']['figures']['counts']
        train = {s: rows[kind]['train']['images_per_second']['median'] for s, kind in KINDS.items()}
        found = train | dict(search=rows['ours']['eval']['images_per_second']['median'])
    except (KeyError, TypeError):
        return None
    step = sum(counts[name] for name in ('route', 'merge', 'forward', 'backward', 'optimizers'))
    kernels = dict(experts=step, supernet=step - 3 * (counts['route'] + counts['merge']))
    return found | dict(merge=merge, kernels=kernels)


def training_time(
    recipe: Recipe,
    gpus: int,
    speeds: Mapping[str, float],
    stage: str,
    counted: Mapping[str, float],
    reading: float,
    assumed: Assumptions,
) -> dict:
    """Hours of a training stage, and what bounds it.

    Args:
        recipe: The stage's schedule.
        gpus: Their number.
        speeds: Images a second of one GPU, by stage, and ``kernels``.
        stage: 'supernet' or 'experts'.
        counted: Of the stage, by :func:`sizes_of`.
        reading: Images a second that one core reads and augments.
        assumed: The rest.

    Returns:
        ``hours``, ``bound`` ('step', 'reading', 'launching' or 'exchange') and ``paces``, images a
        second of one GPU, by what would bound it.
    """
    paces = _paces(recipe.batch, gpus, speeds, stage, counted, reading, assumed)
    bound = min(paces, key=paces.get)
    seconds = recipe.epochs * assumed.images / (gpus * paces[bound])
    validated = 2 * recipe.epochs / recipe.val_interval * assumed.validated
    seconds += validated / (gpus * min(speeds['search'], paces['reading']))
    return dict(hours=seconds / 3600, bound=bound, paces=paces)


def _paces(batch, gpus, speeds, stage, counted, reading, assumed) -> dict[str, float]:
    """Images a second of one GPU, by what would bound it."""
    share = batch / gpus
    paces = dict(
        step=speeds[stage],
        reading=min(assumed.cores, assumed.workers) * reading,
        launching=share / (speeds['kernels'][stage] * assumed.launch),
    )
    if gpus > 1:
        is_one_machine = gpus <= assumed.gpus_of_a_machine
        bandwidth = assumed.bandwidth if is_one_machine else assumed.network
        exchange = 2 * (gpus - 1) / gpus * counted['gradient_bytes'] / bandwidth
        paces['exchange'] = share / exchange
    return paces


def search_time(gpus: int, speeds: Mapping[str, float], assumed: Assumptions) -> dict:
    """Hours of a race on ``gpus``; images are decoded once, so reading is not counted."""
    images = assumed.candidates * assumed.held_out * assumed.race_share
    seconds = images / speeds['search']
    seconds += assumed.candidates * assumed.slices * speeds['merge']
    speedup = dict(assumed.search_speedup)[gpus]
    bound = 'step' if speedup > 0.8 * gpus else 'waiting'
    return dict(hours=seconds / speedup / 3600, bound=bound, paces=dict(step=speeds['search']))


def rows(
    counted: Mapping[str, Mapping],
    speeds: Mapping[str, float],
    recipes: Mapping[str, Recipe],
    reading: float,
    assumed: Assumptions,
) -> Iterator[dict]:
    """For each stage and number of GPUs ``hours``, ``dollars``, ``bound`` and ``paces``."""
    for stage in STAGES:
        for gpus, _ in assumed.search_speedup:
            if stage == 'search':
                found = search_time(gpus, speeds, assumed)
            else:
                parts = (recipes[stage], gpus, speeds, stage, counted[stage])
                found = training_time(*parts, reading, assumed)
            dollars = gpus * found['hours'] * assumed.price
            yield dict(stage=stage, gpus=gpus, dollars=dollars, **found)


def cores_needed(speed: float, reading: float) -> float:
    """Cores that read as many images as a GPU trains on in a second."""
    return speed / reading
