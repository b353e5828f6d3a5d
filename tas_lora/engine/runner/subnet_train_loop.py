"""Training of subnets sampled for each iteration."""

import os

import numpy as np

from ...checks import natural
from ...errors import UserError
from ...registry import LOOPS
from ...structures import SearchSpace, Subnet
from ..model_access import supernet_of
from .resumable_train_loop import ResumableTrainLoop
from .strategy import build_strategy

_TRIES = 1000  # uniform sampling finds another subnet than the parent in half of them or more


@LOOPS.register_module()
class SubnetSamplingTrainLoop(ResumableTrainLoop):
    """An epoch loop whose strategy samples the subnets of an iteration and trains them.

    They are a function of (seed, iteration): all ranks sample the same ones without
    communication, and so does a resumed run.

    Args:
        dataloader: As in :class:`ResumableTrainLoop`.
        max_epochs: As in :class:`ResumableTrainLoop`.
        space: The search space, or its dict.
        seed: Seed of the subnets. Not the runner's, which may differ between ranks.
        strategy: Config of the strategy, by default ``tas_lora.UniformSampling``.
        **kwargs: ``max_bad_images``, ``val_interval``, ... as in :class:`ResumableTrainLoop`.

    Raises:
        UserError: If the space has subnets that do not fit the supernet, or the strategy does not
            exist or does not suit the rest of the config.
    """

    def __init__(
        self,
        runner,
        dataloader,
        max_epochs: int,
        space: dict,
        seed: int = 0,
        strategy: dict | None = None,
        **kwargs,
    ):
        super().__init__(runner, dataloader, max_epochs, **kwargs)
        self.space = SearchSpace.coerce(space)
        self.seed = natural(seed, 'seed')
        self.model = supernet_of(runner)
        self.model.check_space(self.space, 'the space')
        if self.model.keeps(self.space.smallest()):
            raise UserError('has only the full size, which keep_parent keeps: add smaller', 'space')
        if min(self.space.depth) < self.model.backbone.arch.depth:
            _check_wrapper(runner)
        self.strategy = build_strategy(strategy)
        self.strategy.check(runner)

    def draw(self, iteration: int) -> list[Subnet]:
        """The subnets of an iteration, counted from 0 since the start of training."""
        rng = np.random.default_rng((self.seed, iteration))
        for _ in range(_TRIES):
            drawn = self.strategy.draw(self.space, rng)
            if trained := [subnet for subnet in drawn if not self.model.keeps(subnet)]:
                return trained
        raise UserError(
            f'is {type(self.strategy).__name__}, which samples only the full size, and '
            'model.keep_parent keeps it; choose another strategy, or leave out keep_parent',
            'train_cfg.strategy',
        )

    def run_iter(self, idx, data_batch) -> None:
        """Run one iteration on the subnets sampled for it."""
        subnets = self.draw(self.iter)
        self.model.set_subnet(subnets[0])
        self.runner.call_hook('before_train_iter', batch_idx=idx, data_batch=data_batch)
        outputs = self.strategy.train_step(self.runner, subnets, data_batch)
        self.runner.call_hook(
            'after_train_iter', batch_idx=idx, data_batch=data_batch, outputs=outputs
        )
        self._iter += 1

    def where(self, iteration: int, rates: dict) -> str:
        """Describe an iteration of training, for messages."""
        subnets = '; '.join(map(str, self.draw(iteration)))
        return f'{super().where(iteration, rates)}, subnet {subnets}'


def _check_wrapper(runner) -> None:
    """Refuse DDP that waits for the gradients of skipped blocks; torch would, in iteration 2."""
    waits = getattr(runner.model, 'find_unused_parameters', None) is False
    # The launcher checks in one process what it then starts in several.
    is_checked = int(os.environ.get('TAS_LORA_PROCESSES', '1')) > 1
    is_plain = runner.cfg.get('model_wrapper_cfg') is None
    if waits or (is_checked and is_plain and not runner.cfg.get('find_unused_parameters', False)):
        raise UserError(
            'find_unused_parameters is False, but must be True in several processes: blocks that '
            'a subnet skips get no gradient'
        )
