"""Strategies of supernet training: which subnets an iteration draws, and how they learn."""

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ...checks import boolean, natural
from ...registry import TASK_UTILS, build_part
from ...structures import SearchSpace, Subnet
from ..model_access import refuse_accumulation, supernet_of


class SubnetStrategy:
    """What a strategy does; by default the model trains on the one subnet drawn."""

    def check(self, runner) -> None:
        """Raise :class:`UserError` if the strategy does not go with the config of ``runner``."""

    def draw(self, space: SearchSpace, rng: np.random.Generator) -> list[Subnet]:
        """The subnets of an iteration, the first of which is active when it begins."""
        raise NotImplementedError

    def train_step(self, runner, subnets: list[Subnet], data_batch: dict) -> dict[str, Tensor]:
        """Train on one batch; returns what is logged."""
        return runner.model.train_step(data_batch, optim_wrapper=runner.optim_wrapper)


@TASK_UTILS.register_module()
class UniformSampling(SubnetStrategy):
    """One uniform subnet an iteration (AutoFormer, TAS-LoRA)."""

    def draw(self, space: SearchSpace, rng: np.random.Generator) -> list[Subnet]:
        """One subnet."""
        return [space.sample(rng)]


@TASK_UTILS.register_module()
class SandwichRule(SubnetStrategy):
    """Largest, smallest and some uniform subnets in each iteration, with in-place distillation.

    The largest learns from the labels, the others from its probabilities on the same batch
    (cross-entropy; none of it reaches the teacher). All gradients are summed into one step, as
    in US-Nets (Yu and Huang, ICCV 2019). An iteration costs as much as its subnets together.
    On small data at a high rate, distillation held training back (measured on the digits): labels
    have the weight of one subnet, what the supernet believes already that of all others.

    Args:
        num_random: Uniform subnets besides the two.
        distill: Off, all subnets learn from the labels.
    """

    def __init__(self, num_random: int = 2, distill: bool = True):
        self.num_random = natural(num_random, 'num_random', most=1000)
        self.distill = boolean(distill, 'distill')

    def check(self, runner) -> None:
        """Refuse gradient accumulation, whose count would be one of subnets."""
        refuse_accumulation(runner, 'the sandwich rule makes one step of several subnets already')

    def draw(self, space: SearchSpace, rng: np.random.Generator) -> list[Subnet]:
        """Largest, smallest, then the uniform ones."""
        return [
            space.largest(),
            space.smallest(),
            *(space.sample(rng) for _ in range(self.num_random)),
        ]

    def train_step(self, runner, subnets: list[Subnet], data_batch: dict) -> dict[str, Tensor]:
        """One backward a subnet, one step; logs the loss of each."""
        optim_wrapper, logged, teacher = runner.optim_wrapper, {}, None
        model = supernet_of(runner)
        batch = model.data_preprocessor(data_batch, training=True)
        for name, subnet in zip(self._names, subnets, strict=True):
            if logged:  # the first is active, its experts merged
                model.set_subnet(subnet)
            with optim_wrapper.optim_context(runner.model):
                logits = runner.model(**batch, mode='tensor')  # (B, classes)
                loss = self._loss(model, logits, teacher, batch['data_samples'])
            if self.distill and teacher is None:
                teacher = logits.detach().float().softmax(dim=-1)
            logged[f'loss_{name}'] = loss.detach()
            if len(logged) < len(subnets):
                optim_wrapper.backward(optim_wrapper.scale_loss(loss))
            else:
                optim_wrapper.update_params(loss)
        return dict(loss=sum(logged.values()), **logged)

    @property
    def _names(self) -> list[str]:
        return ['largest', 'smallest', *(f'random{i}' for i in range(self.num_random))]

    @staticmethod
    def _loss(model, logits: Tensor, teacher: Tensor | None, data_samples) -> Tensor:
        if teacher is not None:
            return F.cross_entropy(logits.float(), teacher)
        return model.parse_losses(model.head.loss_of_logits(logits, data_samples))[0]


def build_strategy(config: dict | None) -> SubnetStrategy:
    """The strategy of a config, by default uniform sampling.

    Raises:
        UserError: If it does not exist, or does not take its arguments.
    """
    config = dict(type='tas_lora.UniformSampling') if config is None else config
    return build_part(TASK_UTILS, config, SubnetStrategy, 'strategy')
