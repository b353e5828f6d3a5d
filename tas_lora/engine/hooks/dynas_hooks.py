"""DYNAS: training of a supernet that minds how large the drawn subnet is.

Jeon et al., "Subnet-Aware Dynamic Supernet Training for Neural Architecture Search", CVPR 2025.
It was published for NAS-Bench-201 and SGD; on a transformer space with AdamW it is our
adaptation. The two halves are two hooks, each of use without the other.
"""

from collections import defaultdict
from math import log

import numpy as np
from mmengine.hooks import Hook

from ...checks import bounded, natural, one_of, positive
from ...errors import UserError
from ...registry import HOOKS
from ...search.complexity import count_params
from ...structures import SearchSpace, Subnet
from ..model_access import refuse_accumulation, supernet_of

_STATES = 'momentum_separation'  # in checkpoints


def decay_exponent(params: int, smallest: int, largest: int, gamma_max: float = 4.0) -> float:
    """gamma(a) = w ln C(a) + tau: ``gamma_max`` for the smallest subnet, 1 / it for the largest.

    Args:
        params: C(a), parameters of the subnet.
        smallest: The least C in the space.
        largest: The most C in the space. In a space of one subnet gamma is 1.
        gamma_max: Exponent of the smallest.
    """
    if smallest == largest:
        return 1.0
    gamma_min = 1 / gamma_max
    w = -(gamma_max - gamma_min) / (log(largest) - log(smallest))
    return gamma_min + w * (log(params) - log(largest))


@HOOKS.register_module()
class ComplexityAwareLRHook(Hook):
    """Learning rate of the drawn subnet: eta0 ((1 - e) (1 - t/T)^gamma(a) + e).

    It takes the place of a schedule; a small subnet's rate falls faster than a large one's, and
    gamma = 1 is linear decay. Before ``begin`` the config's ``param_scheduler`` rules (warm-up);
    t and T are counted from there.

    Args:
        gamma_max: Exponent of the smallest subnet of the space; the largest has its inverse.
        min_fraction: e, the share of eta0 that is left at the end.
        begin: Epochs of warm-up.
    """

    priority = 'HIGHEST'  # so that the rate logged is the one used

    def __init__(self, gamma_max: float = 4.0, min_fraction: float = 0.0, begin: int = 0):
        self.gamma_max = positive(gamma_max, 'gamma_max', float)
        self.begin = natural(begin, 'begin')
        self.min_fraction = bounded(min_fraction, 'min_fraction', reached=False)

    def before_run(self, runner):
        space = space_of_single_subnets(runner)
        if self.begin >= runner.max_epochs:
            raise UserError(
                f'is {self.begin}, but train_cfg.max_epochs is {runner.max_epochs}: the rates of '
                'DYNAS would never be used',
                'ComplexityAwareLRHook.begin',
            )
        count = supernet_of(runner).image_spec
        self.extremes = [count_params(s, **count) for s in (space.smallest(), space.largest())]

    def before_train(self, runner):
        for group in _optimizer_of(runner).param_groups:
            group.setdefault('initial_lr', group['lr'])  # eta0; schedulers and checkpoints have it

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        start = self.begin * len(runner.train_dataloader)
        if runner.iter < start:
            return
        model = supernet_of(runner)
        params = count_params(model.subnet, **model.image_spec)
        gamma = decay_exponent(params, *self.extremes, self.gamma_max)
        left = 1 - (runner.iter - start) / (runner.max_iters - start)
        factor = (1 - self.min_fraction) * left**gamma + self.min_fraction
        for group in _optimizer_of(runner).param_groups:
            group['lr'] = group['initial_lr'] * factor


@HOOKS.register_module()
class MomentumSeparationHook(Hook):
    """Subnets fall in groups; each group has optimizer states of its own over shared weights.

    Only the states of the drawn subnet's group are seen and changed by a step. They are kept in
    checkpoints. Memory: one set of states a group.

    Args:
        group_by: A field of the search space, one group a choice.
        seed: For 'num_heads' and 'mlp_ratio', which differ by block: the seed that draws the
            block, one that all subnets have.
    """

    def __init__(self, group_by: str = 'depth', seed: int = 0):
        one_of(group_by, 'group_by', SearchSpace.field_names())
        self.group_by, self.seed = group_by, natural(seed, 'seed')
        self.stored = None

    def after_load_checkpoint(self, runner, checkpoint: dict):
        self.stored = checkpoint.get(_STATES)

    def before_run(self, runner):
        self.space = space_of_single_subnets(runner)
        self.optimizer = _optimizer_of(runner)

    def before_train(self, runner):
        self.states = defaultdict(lambda: defaultdict(dict))
        for group, state in (self.stored or {}).items():
            param_groups = self.optimizer.state_dict()['param_groups']
            self.optimizer.load_state_dict(dict(state=state, param_groups=param_groups))
            self.states[group] = self.optimizer.state

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.optimizer.state = self.states[self.group_of(supernet_of(runner).subnet)]

    def before_save_checkpoint(self, runner, checkpoint: dict):
        active, packed = self.optimizer.state, {}
        for group, state in self.states.items():
            self.optimizer.state = state
            packed[group] = self.optimizer.state_dict()['state']
        self.optimizer.state = active
        checkpoint[_STATES] = packed

    def group_of(self, subnet: Subnet) -> int:
        """Group of a subnet, the place of its choice among the space's."""
        choice = getattr(subnet, self.group_by)
        if isinstance(choice, tuple):
            choice = choice[np.random.default_rng(self.seed).integers(min(self.space.depth))]
        return getattr(self.space, self.group_by).index(choice)


def space_of_single_subnets(runner) -> SearchSpace:
    """The space of a training that draws one subnet an iteration; any other is refused."""
    loop = runner.train_loop
    space = getattr(loop, 'space', None)  # loops of other packages have none
    if space is None or len(loop.draw(0)) != 1:
        raise UserError(
            'DYNAS goes by the one subnet of an iteration; it needs '
            "train_cfg.type='tas_lora.SubnetSamplingTrainLoop' with a strategy that draws one"
        )
    _optimizer_of(runner)
    refuse_accumulation(runner, 'DYNAS goes by the one subnet of a step')
    return space


def _optimizer_of(runner):
    optimizer = getattr(runner.optim_wrapper, 'optimizer', None)  # an OptimWrapperDict has none
    if optimizer is None:
        raise UserError('DYNAS trains a supernet (stage 1) by one optimizer; this config has more')
    return optimizer
