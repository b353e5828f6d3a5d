"""Costs of a search space ahead of training, without data."""

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from statistics import linear_regression, mean

import numpy as np

from ..checks import positive
from ..errors import UserError
from ..models import SupernetClassifier
from ..models.heads.router_head import RouterHead
from ..models.layers import expert_parameters
from ..search import Evolution, count_flops, count_params
from ..structures import SearchSpace, Subnet

QUANTILES = (0.1, 0.5, 0.9)
NARROW = 1.2  # ratio of sizes below which there is little to choose
FAR_OFF = 1.0  # distance of a mean from its expected value, in standard deviations
FEW_IMAGES = 100  # with fewer held-out images, one is more than a point of top-1


def count_space(
    space: SearchSpace, spec: Mapping[str, int], draws: int = 2000, seed: int = 0
) -> dict:
    """Number of subnets, and their costs. Mean and quantiles are of random subnets.

    Returns:
        ``subnets``, the number; and for each of ``params`` and ``flops`` a dict: ``smallest`` and
        ``largest``, the costs of these subnets; ``mean`` and ``quantiles`` of the draws, the latter
        at :data:`QUANTILES`.
    """
    rng = np.random.default_rng(seed)
    drawn = [space.sample(rng) for _ in range(positive(draws, '--draws', int, most=10**6))]

    def summary(count: Callable[..., float]) -> dict:
        values = [count(subnet, **spec) for subnet in drawn]
        return dict(
            smallest=count(space.smallest(), **spec),
            quantiles=np.quantile(values, QUANTILES).tolist(),
            largest=count(space.largest(), **spec),
            mean=float(np.mean(values)),
        )

    return dict(subnets=space.size, params=summary(count_params), flops=summary(count_flops))


def count_weights(model: SupernetClassifier) -> dict[str, int]:
    """Number of parameters of each part of a model, and of all that is trained."""
    experts = sum(p.numel() for p in expert_parameters(model))
    router = 0 if model.router is None else sum(p.numel() for p in model.router.parameters())
    every = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return dict(supernet=every - experts - router, experts=experts, router=router, trained=trained)


def count_experts(model: SupernetClassifier) -> tuple[int, int] | None:
    """Number of experts to route to, and of block groups; None without a router with groups."""
    if not isinstance(model.router, RouterHead):
        return None
    return model.router.num_experts - model.router.num_shared, len(model.router.groups)


def images_read(dataset: Mapping, count: int) -> int:
    """Images in one pass over a dataset whose innermost dataset has ``count`` images.

    Understands ``HeldOutSplit`` and ``RepeatDataset`` around it.

    Raises:
        UserError: If no training image is left, or the split needs the files.
    """
    kind, inner = str(dataset.get('type')).rpartition('.')[2], dataset.get('dataset')
    if kind == 'RepeatDataset':
        return dataset['times'] * images_read(inner, count)
    if kind != 'HeldOutSplit':
        return count
    whole, size = images_read(inner, count), dataset.get('size', 10_000)
    if dataset.get('images') is not None:
        raise UserError(
            'HeldOutSplit.images is a list of files; leave --images out and provide the files'
        )
    if size >= whole:
        raise UserError(
            f'cannot hold out {size:,} of {whole:,} training images; lower HeldOutSplit.size'
        )
    return size if dataset.get('part') == 'heldout' else whole - size


def candidates_of(search: Mapping, space: SearchSpace) -> int:
    """Largest number of subnets that a search with ``val_cfg`` ``search`` asks for.

    Without ``evolution`` in it, Algorithm 2's defaults apply.
    """
    evolution = Evolution(space, lambda subnet: True, **(search.get('evolution') or {}))
    return min(space.size, evolution.population * evolution.generations)


def chosen_subnets(space: SearchSpace, count: int, seed: int) -> dict[str, Subnet]:
    """The smallest, the largest and ``count`` random subnets, by name."""
    rng = np.random.default_rng(seed)
    drawn = {f'drawn {i + 1}': space.sample(rng) for i in range(count)}
    return dict(smallest=space.smallest(), **drawn, largest=space.largest())


def expected_seconds(
    seconds: Mapping[str, float], flops: Mapping[str, float], mean_flops: float
) -> float:
    """Expected seconds of a subnet of the space, from a few that were timed.

    Takes the least-squares line through the timed subnets at the space's mean FLOPs, as the mean of
    a few draws would be off. If all have the same FLOPs, it is their mean.
    """
    x = [flops[name] for name in seconds]
    if len(set(x)) == 1:
        return mean(seconds.values())
    slope, intercept = linear_regression(x, list(seconds.values()))
    return intercept + slope * mean_flops


def steps_of(images: int, loader: Mapping) -> int:
    """Steps per epoch in one process."""
    full = images / loader['batch_size']
    return int(full) if loader.get('drop_last') else ceil(full)


def step_with_reading(step: float, reading: float, loader: Mapping) -> float:
    """Seconds of a step, including the wait for its images.

    ``reading`` are the seconds of one image. Each of ``num_workers`` is assumed to have a core.
    """
    reading, workers = reading * loader['batch_size'], loader.get('num_workers', 0)
    return max(step, reading / workers) if workers else step + reading


def find_hints(found: Mapping) -> list[str]:
    """Sentences about what is odd in a space, and what to change.

    Args:
        found: The figures of :func:`count_space`; ``weights`` of :func:`count_weights`, ``experts``
            of :func:`count_experts`, and ``search`` with ``candidates`` and ``images``, which are
            None if unknown.
    """
    hints, search = _hints_on_sizes(found['params'], found['weights']['supernet']), found['search']
    if found['subnets'] <= search['candidates']:
        hints.append(
            f'the space has {found["subnets"]:,} subnets, no more than the search asks for: add '
            'choices, or lower evolution.population or generations'
        )
    if found['experts'] is not None and found['experts'][0] > found['experts'][1]:
        hints.append(
            'K is {}, but there are only {} groups of blocks: further experts have no group of '
            'their own; lower mole.num_experts'.format(*found['experts'])
        )
    if search['images'] is not None and search['images'] < FEW_IMAGES:
        hints.append(
            f'only {search["images"]} images are held out: one image is '
            f'{100 / search["images"]:.1f} points of top-1; raise HeldOutSplit.size'
        )
    return hints


def pixel_hint(mean: Sequence[float], std: Sequence[float], preprocessor: Mapping) -> list[str]:
    """A hint if the config's normalisation does not fit the images; else an empty list.

    ``mean`` and ``std`` are those of each channel of the images as read.
    """
    if preprocessor.get('mean') is None or len(preprocessor['mean']) != len(mean):
        return []
    if preprocessor.get('to_rgb'):  # images are read as B, G, R, and reversed before
        mean, std = mean[::-1], std[::-1]
    shift = (np.array(mean) - preprocessor['mean']) / preprocessor['std']
    scale = np.array(std) / preprocessor['std']
    if np.abs(shift).max() < FAR_OFF and scale.max() < 2 and scale.min() > 0.5:
        return []
    fields = dict(mean=mean, std=std).items()
    wanted = ', '.join(f'{name}={np.round(values, 1).tolist()}' for name, values in fields)
    return [
        f'normalised images have a mean of {shift.mean():.1f} and a spread of {scale.mean():.1f} '
        f'instead of 0 and 1, which slows training: set data_preprocessor to {wanted}'
    ]


def _hints_on_sizes(params: Mapping[str, float], supernet: int) -> list[str]:
    found, largest = [], params['largest']
    if largest < NARROW * params['smallest']:
        found.append(
            f'the largest subnet has only {largest / params["smallest"]:.2f} x the parameters of '
            'the smallest: spread the choices of embed_dim, depth or mlp_ratio further apart'
        )
    if supernet > NARROW * largest:
        found.append(
            f'the supernet has {supernet / largest:.2f} x the parameters of the largest subnet: '
            'the excess is never trained; lower model.backbone.arch'
        )
    return found
