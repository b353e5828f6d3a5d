"""Training with one random subnet per iteration."""

import numpy as np
from mmengine.runner import EpochBasedTrainLoop

from ...registry import LOOPS
from ...structures import SearchSpace, Subnet
from ...structures.subnet import natural, positive
from ..hooks.mole_hook import supernet_of


@LOOPS.register_module()
class SubnetSamplingTrainLoop(EpochBasedTrainLoop):
    """MMEngine's epoch loop that first makes a uniform subnet the active one.

    The subnet is a function of (seed, iteration): all ranks draw the same one without talking,
    and a resumed run draws what an undisturbed one would.

    Args:
        runner: The runner.
        dataloader: As in ``EpochBasedTrainLoop``.
        max_epochs: As there.
        space: The search space, or its dict.
        seed: Seed of the draws. Not the runner's, which may differ between ranks.
        **kwargs: ``val_begin``, ``val_interval``, ... as in ``EpochBasedTrainLoop``.

    Raises:
        UserError: If the space has subnets that do not fit inside the supernet.
    """

    def __init__(self, runner, dataloader, max_epochs: int, space: dict, seed: int = 0, **kwargs):
        super().__init__(runner, dataloader, max_epochs, **kwargs)
        self.space = SearchSpace.coerce(space)
        self.seed = natural(seed, 'train_cfg.seed')
        positive(self.max_epochs, 'train_cfg.max_epochs', int)
        self.model = supernet_of(runner)
        self.space.largest().check_fits(self.model.backbone.arch, 'the largest subnet of the space')

    def sample_subnet(self, iteration: int) -> Subnet:
        """The subnet of an iteration, counted from 0 over the whole training."""
        return self.space.sample(np.random.default_rng((self.seed, iteration)))

    def run_iter(self, idx, data_batch) -> None:
        """One iteration of the subnet drawn for it."""
        self.model.set_subnet(self.sample_subnet(self.iter))
        super().run_iter(idx, data_batch)
