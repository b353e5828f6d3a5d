"""Strategies of supernet training: which subnets an iteration samples, and how they learn."""

from collections.abc import Callable, Mapping

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ...checks import boolean, natural
from ...errors import UserError
from ...models import SupernetClassifier
from ...registry import TASK_UTILS, build_part
from ...structures import SearchSpace, Subnet
from ..model_access import refuse_accumulation, supernet_of


class SubnetStrategy:
    """Base class; by default the model trains the one subnet sampled."""

    needs_labels = True  # whether data without labels are refused
    teachers = 0  # networks that run forward in each iteration, in addition to the subnets

    def check(self, runner) -> None:
        """Raise :class:`UserError` if the config of ``runner`` does not suit the strategy."""

    def draw(self, space: SearchSpace, rng: np.random.Generator) -> list[Subnet]:
        """Sample the subnets of an iteration. It begins with the first one active.

        The loop leaves out a parent that is kept (``model.keep_parent``), and asks again if nothing
        else was sampled.
        """
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
        """Refuse gradient accumulation, which would count subnets, and a largest that is kept."""
        refuse_accumulation(runner, 'the sandwich rule already accumulates over subnets')
        if keeps_largest(runner):
            raise UserError(
                'is tas_lora.SandwichRule, which trains the largest subnet, and model.keep_parent '
                'keeps it; choose tas_lora.ParentDistillation',
                'train_cfg.strategy',
            )

    def draw(self, space: SearchSpace, rng: np.random.Generator) -> list[Subnet]:
        """Sample the uniform subnets, and put largest and smallest before them."""
        return sandwich(space, rng, self.num_random)

    def train_step(self, runner, subnets: list[Subnet], data_batch: dict) -> dict[str, Tensor]:
        """Run backward for each subnet, then step once; logs the loss of each."""
        model, teacher = supernet_of(runner), None

        def losses_of(name: str, batch: dict) -> dict[str, Tensor]:
            nonlocal teacher
            logits = runner.model(**batch, mode='tensor')  # (B, classes)
            if teacher is not None:
                loss = _cross_entropy(logits.float(), teacher, model.is_multi_label)
            else:
                loss = label_loss(model, logits, batch['data_samples'])
            if self.distill and teacher is None:
                teacher = model.probabilities(logits.detach().float())
            return {f'loss_{name}': loss}

        named = dict(zip(sandwich_names(self.num_random), subnets, strict=True))
        batch = model.data_preprocessor(data_batch, training=True)
        return train_on_each(runner, named, batch, losses_of)


def sandwich(space: SearchSpace, rng: np.random.Generator, num_random: int) -> list[Subnet]:
    """The largest subnet, the smallest, and uniformly sampled ones."""
    drawn = [space.sample(rng) for _ in range(num_random)]
    return [space.largest(), space.smallest(), *drawn]


def sandwich_names(num_random: int) -> list[str]:
    """Names of the subnets of :func:`sandwich`."""
    return ['largest', 'smallest', *(f'random{i}' for i in range(num_random))]


def keeps_largest(runner) -> bool:
    """Whether the largest subnet of the training's space is a parent that is kept."""
    space = SearchSpace.coerce(runner.cfg.train_cfg['space'])
    return supernet_of(runner).keeps(space.largest())


def train_on_each(
    runner,
    subnets: Mapping[str, Subnet],
    batch: dict,
    losses_of: Callable[[str, dict], dict[str, Tensor]],
) -> dict[str, Tensor]:
    """Run backward for each subnet on the same batch, then step once.

    Args:
        runner: The runner.
        subnets: The subnets by name; the first is active already, its experts merged.
        batch: The batch, preprocessed.
        losses_of: Losses of the active subnet by the name to log, from its name and the batch.

    Returns:
        What to log: each loss, and their sum as 'loss'.
    """
    optim_wrapper, logged = runner.optim_wrapper, {}
    for place, (name, subnet) in enumerate(subnets.items(), 1):
        if place > 1:
            supernet_of(runner).set_subnet(subnet)
        with optim_wrapper.optim_context(runner.model):
            losses = losses_of(name, batch)
            loss = sum(losses.values())
        logged |= {key: value.detach() for key, value in losses.items()}
        if place < len(subnets):
            optim_wrapper.backward(optim_wrapper.scale_loss(loss))
        else:
            optim_wrapper.update_params(loss)
    return dict(loss=sum(logged.values()), **logged)


def label_loss(model: SupernetClassifier, logits: Tensor, data_samples: list) -> Tensor:
    """Loss of the head from the labels."""
    loss, _ = model.parse_losses(model.head._get_loss(logits, data_samples))
    return loss


def _cross_entropy(logits: Tensor, teacher: Tensor, multi_label: bool) -> Tensor:
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
