"""What a subnet with experts costs, compared with contestants of the same widths."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial

import numpy as np
import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..models import SupernetClassifier
from ..structures import SearchSpace, Subnet
from .reference_models import (
    MMPretrainViT,
    StaticViT,
    left_unmerged,
    loss_of,
    made_naive,
    optimizers_of,
    training_step,
)
from .timing import interleave, milliseconds, per_second, ratio, saved_bytes, stopwatch


def supernet(model_config: Mapping, experts: bool = True) -> SupernetClassifier:
    """Build the supernet of a stage-2 config in training mode, without the randomness of a step.

    Without ``experts`` it is bare, and all of it is trained.
    """
    config = deepcopy(dict(model_config))
    config.pop('train_cfg', None)
    config.pop('keep_parent', None)  # the largest subnet is timed as one that is trained
    config['backbone'] = dict(config['backbone'], drop_path_rate=0.0)
    if not experts:
        config['backbone'].pop('mole')
        config.pop('router')
    return MODELS.build(config)


_PLAIN = dict(max_relative_position=None, style=dict(qkv_bias_by_part=True))
CONTESTANTS = ('static', 'ours', 'naive', 'unmerged', 'finetune', 'mmpretrain')


def contestants(
    model_config: Mapping, subnet: Subnet, device: str, names: Sequence[str] = CONTESTANTS
) -> dict[str, nn.Module]:
    """Build contestants with the widths of ``subnet``, by name; 'static' is the limit."""
    spec = supernet(model_config).image_spec
    makers = dict(
        static=lambda: StaticViT(subnet, spec),
        ours=lambda: supernet(model_config),
        naive=lambda: made_naive(supernet(model_config).to(device)),
        unmerged=lambda: left_unmerged(supernet(model_config)),
        finetune=lambda: supernet(model_config, experts=False),
        mmpretrain=lambda: MMPretrainViT(subnet, spec),
    )
    models = {name: makers[name]() for name in names}
    for model in models.values():
        model.to(device).train()
        if isinstance(model, SupernetClassifier):
            model.set_subnet(subnet)
    return models


def plain_contestants(
    model_config: Mapping, subnets: Mapping[str, Subnet], device: str
) -> dict[str, nn.Module]:
    """Build a supernet without relative positions and experts, and the limit, for each subnet.

    Returns:
        For each name of ``subnets`` 'plain NAME', a supernet that runs this subnet, and 'static
        NAME', the network of its widths.
    """
    config = dict(model_config, backbone=dict(model_config['backbone'], **_PLAIN))
    models = {}
    for name, subnet in subnets.items():
        models[f'plain {name}'] = model = supernet(config, experts=False)
        model.set_subnet(subnet)
        models[f'static {name}'] = StaticViT(subnet, model.image_spec)
    return {name: model.to(device).train() for name, model in models.items()}


def batch_of(spec: dict, size: int, device: str) -> tuple[Tensor, Tensor]:
    """Noise (size, channels, side, side) and labels (size,), the same in every call."""
    generator = torch.Generator().manual_seed(0)
    shape = (size, spec['in_channels'], spec['img_size'], spec['img_size'])
    images = torch.randn(shape, generator=generator)
    labels = torch.randint(spec['num_classes'], (size,), generator=generator)
    return images.to(device), labels.to(device)


def measure_training(
    models: Mapping[str, nn.Module], batch: tuple[Tensor, Tensor], rounds: int, amp: bool
) -> dict[str, list[float]]:
    """Seconds of training steps: set, route, merge, forward, backward, optimizers."""
    steps = {name: training_step(model, *batch, amp) for name, model in models.items()}
    return interleave(steps, rounds, batch[0].device.type)


@torch.no_grad()
def measure_evaluation(
    models: Mapping[str, nn.Module], images: Tensor, rounds: int, amp: bool, low: bool = True
) -> dict[str, list[float]]:
    """Seconds of a forward with experts merged before; ``low`` adds ``ours_bf16``, by autocast."""

    def forward(model: nn.Module, bf16: bool) -> None:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            model(images)

    jobs = {name: partial(forward, model.eval(), amp) for name, model in models.items()}
    if low and 'ours' in models:
        jobs['ours_bf16'] = partial(forward, models['ours'], True)
    for model in models.values():
        if isinstance(model, SupernetClassifier):
            model.merge_experts()
    seconds = interleave(jobs, rounds, images.device.type)
    for model in models.values():
        model.train()
        if isinstance(model, SupernetClassifier):
            model.unmerge_experts()
    return seconds


def measure_activations(
    models: Mapping[str, nn.Module], batch: tuple[Tensor, Tensor], amp: bool
) -> dict[str, int]:
    """Bytes that autograd keeps for the backward, including merged weights."""
    return {
        name: saved_bytes(model, partial(loss_of, model, *batch, amp))
        for name, model in models.items()
    }


def measure_hops(
    model: SupernetClassifier, space: SearchSpace, batch: tuple[Tensor, Tensor], rounds: int
) -> dict[str, list[float]]:
    """Seconds of each part of a step with experts, in float32.

    'backward' is the whole backward; 'merge backward' repeats its part for router and merge.
    """
    device, rng, subnet = batch[0].device.type, np.random.default_rng(0), model.subnet
    step, hops, found = training_step(model, *batch), {}, {}
    optimizers = optimizers_of(model)

    def update() -> None:
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    def timed(name: str, job: Callable[[], object]) -> None:
        def run() -> None:
            found[name] = job()

        hops.setdefault(name, []).append(stopwatch(run, device))

    for _ in range(rounds + 1):
        timed('sample', lambda: space.sample(rng))
        timed('set', lambda: model.set_subnet(subnet))
        timed('route', lambda: model.router(subnet))
        timed('merge', lambda: model.backbone.merge_experts(subnet, found['route']))
        timed('forward', lambda: loss_of(model, *batch))
        timed('backward', lambda: found['forward'].backward())
        timed('optimizers', update)
        model.merge_experts()
        layers = model.backbone.mole_layers()
        merged = [layer.merged for layer in layers if layer.merged is not None]
        ones = [torch.ones_like(weight) for weight in merged]
        timed('merge backward', partial(torch.autograd.backward, merged, ones))
        model.zero_grad()
        model.unmerge_experts()
        timed('whole step', step)
    return {name: seconds[1:] for name, seconds in hops.items()}


def throughput(
    training: Mapping[str, list[float]],
    evaluation: Mapping[str, list[float]],
    images: tuple[int, int],
    products: Mapping[str | None, float],
    rates: tuple[float, float],
) -> dict[str, dict]:
    """Images per second of each contestant, and their share of the device's limit.

        share of the limit = images/s x multiply-adds of an image / multiply-adds per second

    The device's rate is that of one large matrix product. An image counts the products of the plain
    network of the subnet's widths: relative positions, experts, norms and optimizers lower the
    share.

    Args:
        training: Seconds, from :func:`measure_training`.
        evaluation: Seconds, from :func:`measure_evaluation`.
        images: Images in a training step, and in an evaluation.
        products: Multiply-adds of an image in a step, by contestant; of a forward at None.
        rates: Multiply-adds per second at the precision measured, and in bfloat16.

    Returns:
        For each contestant ``images_per_second`` and ``share_of_limit``, with median and spread,
        under 'eval' and, if it trains, 'train'.
    """

    def figures(seconds: list[float], count: int, flops: float, rate: float) -> dict[str, dict]:
        seconds_at_limit = count * flops / rate
        return dict(
            images_per_second=per_second(count, seconds),
            share_of_limit=per_second(seconds_at_limit, seconds),
        )

    found = {}
    for name, seconds in evaluation.items():
        rate = rates[1] if name == 'ours_bf16' else rates[0]
        found[name] = dict(eval=figures(seconds, images[1], products[None], rate))
    for name, seconds in training.items():
        found[name]['train'] = figures(seconds, images[0], products[name], rates[0])
    return found


def summary(training: dict, evaluation: dict, activations: dict, hops: dict) -> dict[str, dict]:
    """The main figures of a benchmark, each with median and spread."""
    size = activations['ours'] / activations['static']
    merge = [r + m for r, m in zip(hops['route'], hops['merge'], strict=True)]
    both = [m + b for m, b in zip(merge, hops['merge backward'], strict=True)]
    versus = {
        f'train_step_vs_{other}': ratio(training['ours'], training[other])
        for other in ('static', 'naive')
        if other in training
    }
    if 'ours_bf16' in evaluation:
        versus['eval_bf16_vs_static'] = ratio(evaluation['ours_bf16'], evaluation['static'])
    return dict(
        **versus,
        eval_vs_static=ratio(evaluation['ours'], evaluation['static']),
        saved_activations_vs_static=dict(median=size, spread=[size, size]),
        merge_share_of_step=ratio(both, hops['whole step']),
        route_and_merge_ms=milliseconds(merge),
    )


def plain_summary(training: dict, evaluation: dict, activations: dict) -> dict[str, dict]:
    """What :func:`plain_contestants` cost in ratio to the limit, by name of the subnet."""
    found = {}
    for name in (key.removeprefix('plain ') for key in training if key.startswith('plain ')):
        ours, limit = f'plain {name}', f'static {name}'
        size = activations[ours] / activations[limit]
        found[name] = dict(
            train_step_vs_static=ratio(training[ours], training[limit]),
            eval_vs_static=ratio(evaluation[ours], evaluation[limit]),
            saved_activations_vs_static=dict(median=size, spread=[size, size]),
        )
    return found
