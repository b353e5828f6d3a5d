"""Compilation of blocks ahead of training."""

import sys
import time
from collections.abc import Callable
from itertools import product

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from rich.progress import Progress

from ...datasets.replay import ReplayBatchSampler
from ...registry import HOOKS
from ...structures import SearchSpace, Subnet
from ..model_access import supernet_of
from ..runner.subnet_train_loop import SubnetSamplingTrainLoop
from .similarity_hook import undisturbed


@HOOKS.register_module()
class CompileWarmupHook(Hook):
    """Compiles every block shape before training, if ``backbone.compile_blocks`` is on.

    Without it, an iteration stops to compile whenever a shape first occurs, over several epochs.
    The hook runs a few subnets that together contain all shapes forward and backward on black
    images, at the batch size and precision of training. Weights, gradients, the active subnet and
    random states do not change. An incomplete last batch and evaluation are compiled when they
    first occur.
    """

    def before_train(self, runner):
        model = supernet_of(runner)
        if not model.backbone.compile_blocks or runner.epoch >= runner.max_epochs:
            return
        loop, active, start = runner.train_loop, model.subnet, time.monotonic()
        draws = isinstance(loop, SubnetSamplingTrainLoop)  # other loops train the active subnet
        subnets = covering_subnets(loop.space, model.keeps) if draws else [active]
        is_shown = is_main_process() and sys.stdout.isatty()
        with Progress(transient=True, disable=not is_shown) as progress, undisturbed():
            for subnet in progress.track(subnets, description='Compiling blocks'):
                run_once(runner, subnet)
        model.set_subnet(active)
        seconds = time.monotonic() - start
        runner.logger.info(f'Compiled the blocks of {len(subnets)} subnets in {seconds:.0f} s')


def run_once(runner, subnet: Subnet) -> None:
    """Run one subnet forward and backward as in training, but leave no gradients."""
    model = supernet_of(runner)
    spec, device = model.image_spec, model.backbone.pos_embed.device
    shape = (batch_size_of(runner), spec['in_channels'], spec['img_size'], spec['img_size'])
    model.set_subnet(subnet)
    model.merge_experts()
    with runner.optim_wrapper.optim_context(model):
        features = model.backbone(torch.zeros(shape, device=device), subnet)
    total = sum(feature.sum() for feature in features)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    torch.autograd.grad(total, trained, allow_unused=True)


def batch_size_of(runner) -> int:
    """Images of one training iteration in this process."""
    sampler = runner.train_loop.dataloader.batch_sampler
    inner = sampler.inner if isinstance(sampler, ReplayBatchSampler) else sampler
    return inner.batch_size


def covering_subnets(
    space: SearchSpace, keeps: Callable[[Subnet], bool] = lambda subnet: False
) -> list[Subnet]:
    """The fewest subnets of ``space`` that give each block all its shapes.

    A compiled branch depends only on its own widths, so heads and MLP ratios run through their
    choices concurrently: AutoFormer-T needs 3 x max(2, 2) subnets, all of the largest depth. They
    also change from block to block, as a parent that ``keeps`` names is not trained. Where only
    the depth can change, such a parent gives way to the next depth.
    """
    found = []
    starts = range(max(len(space.num_heads), len(space.mlp_ratio)))
    for patch_size, width, start in product(space.patch_size or (None,), space.embed_dim, starts):
        for depth in sorted(space.depth, reverse=True)[:2]:
            heads, ratios = (
                [choices[(start + i) % len(choices)] for i in range(depth)]
                for choices in (space.num_heads, space.mlp_ratio)
            )
            subnet = Subnet(width, heads, ratios, patch_size)
            if not keeps(subnet):
                found.append(subnet)
                break
    return found
