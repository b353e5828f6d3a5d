"""DYNAS: supernet training that adapts to the complexity of the sampled subnet.

Jeon et al., "Subnet-Aware Dynamic Supernet Training for Neural Architecture Search", CVPR 2025.
It was published for NAS-Bench-201 and SGD; a transformer space with AdamW is our adaptation. Its
two halves are separate hooks, and each works without the other.
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
    """gamma(a) = w ln C(a) + tau, from ``gamma_max`` (smallest subnet) to its inverse (largest).

    Args:
        params: C(a), number of parameters of the subnet.
        smallest: Smallest C in the space.
        largest: Largest C in the space. If both are equal, gamma is 1.
        gamma_max: Exponent of the smallest subnet.
    """
    if smallest == largest:
        return 1.0
    gamma_min = 1 / gamma_max
    w = -(gamma_max - gamma_min) / (log(largest) - log(smallest))
    return gamma_min + w * (log(params) - log(largest))


@HOOKS.register_module()
class ComplexityAwareLRHook(Hook):
    """Sets the learning rate of the sampled subnet: eta0 ((1 - e) (1 - t/T)^gamma(a) + e).

    It replaces a schedule. The rate of a small subnet falls faster than that of a large one;
    gamma = 1 is linear decay. Until ``begin`` the config's ``param_scheduler`` applies (warm-up);
    t and T count from there.

    Args:
        gamma_max: Exponent of the smallest subnet; the largest has its inverse.
        min_fraction: e, the fraction of eta0 that remains at the end.
        begin: Warm-up epochs.
    """

    priority = 'HIGHEST'  # so that the logged rate is the one used

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
    """Gives each group of subnets its own optimizer states over the shared weights.

    A step reads and changes only the states of the sampled subnet's group. Checkpoints contain
    all of them. Memory: one set of optimizer states per group.

    Args:
        group_by: A field of the search space; each of its choices is a group.
        seed: For 'num_heads' and 'mlp_ratio', which differ by block: seed that draws the block
            to group by, one that all subnets have.
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
        """Group of a subnet: the index of its choice in the space."""
        choice = getattr(subnet, self.group_by)
        if isinstance(choice, tuple):
            choice = choice[np.random.default_rng(self.seed).integers(min(self.space.depth))]
        return getattr(self.space, self.group_by).index(choice)


def space_of_single_subnets(runner) -> SearchSpace:
    """The space of a training that samples one subnet per iteration; refuse any other."""
    loop = runner.train_loop
    space = getattr(loop, 'space', None)  # loops of other packages lack it
    if space is None or len(loop.draw(0)) != 1:
        raise UserError(
            'DYNAS depends on the single subnet of an iteration; it needs '
            "train_cfg.type='tas_lora.SubnetSamplingTrainLoop' with a strategy that draws one"
        )
    _optimizer_of(runner)
    refuse_accumulation(runner, 'DYNAS depends on the single subnet of a step')
    return space


def _optimizer_of(runner):
    optimizer = getattr(runner.optim_wrapper, 'optimizer', None)  # an OptimWrapperDict lacks it
    if optimizer is None:
        raise UserError('DYNAS trains a supernet (stage 1) with one optimizer; here are several')
    return optimizer
