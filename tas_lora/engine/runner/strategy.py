"""Strategies of supernet training: which subnets an iteration samples, and how they learn."""

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ...checks import boolean, natural
from ...registry import TASK_UTILS, build_part
from ...structures import SearchSpace, Subnet
from ..model_access import refuse_accumulation, supernet_of


class SubnetStrategy:
    """Base class; by default the model trains the one subnet sampled."""

    def check(self, runner) -> None:
        """Raise :class:`UserError` if the config of ``runner`` does not suit the strategy."""

    def draw(self, space: SearchSpace, rng: np.random.Generator) -> list[Subnet]:
        """Sample the subnets of an iteration. It begins with the first one active."""
        raise NotImplementedError

    def train_step(self, runner, subnets: list[Subnet], data_batch: dict) -> dict[str, Tensor]:
        """Train on one batch and return the values to log."""
        return runner.model.train_step(data_batch, optim_wrapper=runner.optim_wrapper)


@TASK_UTILS.register_module()
class UniformSampling(SubnetStrategy):
    """One uniformly sampled subnet per iteration (AutoFormer, TAS-LoRA)."""

    def draw(self, space: SearchSpace, rng: np.random.Generator) -> list[Subnet]:
        """Sample one subnet."""
        return [space.sample(rng)]


@TASK_UTILS.register_module()
class SandwichRule(SubnetStrategy):
    """Largest, smallest and random subnets in each iteration, with in-place distillation.

    The largest learns from the labels, the others from its probabilities on the same batch
    (cross-entropy, without a gradient to the teacher). All gradients are summed into one step, as
    in US-Nets (Yu and Huang, ICCV 2019). An iteration costs as much as its subnets together.
    On small data at a high rate, distillation slowed training (measured on the digits): the labels
    have the weight of one subnet, and the supernet's current beliefs that of all others.

    Args:
        num_random: Number of uniformly sampled subnets.
        distill: If False, all subnets learn from the labels.
    """

    def __init__(self, num_random: int = 2, distill: bool = True):
        self.num_random = natural(num_random, 'num_random', most=1000)
        self.distill = boolean(distill, 'distill')

    def check(self, runner) -> None:
        """Refuse gradient accumulation, which would count subnets."""
        refuse_accumulation(runner, 'the sandwich rule already accumulates over subnets')

    def draw(self, space: SearchSpace, rng: np.random.Generator) -> list[Subnet]:
        """Sample the uniform subnets, and put largest and smallest before them."""
        drawn = [space.sample(rng) for _ in range(self.num_random)]
        return [space.largest(), space.smallest(), *drawn]

    def train_step(self, runner, subnets: list[Subnet], data_batch: dict) -> dict[str, Tensor]:
        """Run backward for each subnet, then step once; logs the loss of each."""
        optim_wrapper, logged, teacher = runner.optim_wrapper, {}, None
        model = supernet_of(runner)
        batch = model.data_preprocessor(data_batch, training=True)
        names = ['largest', 'smallest', *(f'random{i}' for i in range(self.num_random))]
        for name, subnet in zip(names, subnets, strict=True):
            if logged:  # the first is already active, its experts merged
                model.set_subnet(subnet)
            with optim_wrapper.optim_context(runner.model):
                logits = runner.model(**batch, mode='tensor')  # (B, classes)
                if teacher is not None:
                    loss = _distillation(logits.float(), teacher, model.is_multi_label)
                else:
                    losses = model.head._get_loss(logits, batch['data_samples'])
                    loss, _ = model.parse_losses(losses)
            if self.distill and teacher is None:
                teacher = model.probabilities(logits.detach().float())
            logged[f'loss_{name}'] = loss.detach()
            if len(logged) < len(subnets):
                optim_wrapper.backward(optim_wrapper.scale_loss(loss))
            else:
                optim_wrapper.update_params(loss)
        return dict(loss=sum(logged.values()), **logged)


def _distillation(logits: Tensor, teacher: Tensor, multi_label: bool) -> Tensor:
    """Cross-entropy with the teacher's probabilities, (B, classes), scaled as the labels' loss."""
    if multi_label:
        return F.binary_cross_entropy_with_logits(logits, teacher, reduction='sum') / len(logits)
    return F.cross_entropy(logits, teacher)


def build_strategy(config: dict | None) -> SubnetStrategy:
    """Build the strategy of a config, by default uniform sampling.

    Raises:
        UserError: If it does not exist, or does not accept its arguments.
    """
    config = dict(type='tas_lora.UniformSampling') if config is None else config
    return build_part(TASK_UTILS, config, SubnetStrategy, 'strategy')
