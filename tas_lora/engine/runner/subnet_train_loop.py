"""Training of subnets drawn anew for every iteration."""

import numpy as np

from ...checks import natural
from ...registry import LOOPS
from ...structures import SearchSpace, Subnet
from ..model_access import supernet_of
from .resumable_train_loop import ResumableTrainLoop
from .strategy import build_strategy


@LOOPS.register_module()
class SubnetSamplingTrainLoop(ResumableTrainLoop):
    """An epoch loop whose strategy draws the subnets of an iteration and trains them.

    They are a function of (seed, iteration): all ranks draw the same ones without talking, and a
    resumed run draws what an undisturbed one would.

    Args:
        runner: The runner.
        dataloader: As in :class:`ResumableTrainLoop`.
        max_epochs: As there.
        space: The search space, or its dict.
        seed: Seed of the draws. Not the runner's, which may differ between ranks.
        strategy: Config of the strategy, by default ``tas_lora.UniformSampling``.
        **kwargs: ``max_bad_images``, ``val_interval``, ... as there.

    Raises:
        UserError: If the space has subnets that do not fit inside the supernet, or the strategy
            does not exist or does not go with the rest of the config.
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
        self.model.backbone.check_space(self.space, 'the space')
        self.strategy = build_strategy(strategy)
        self.strategy.check(runner)

    def draw(self, iteration: int) -> list[Subnet]:
        """The subnets of an iteration, counted from 0 over the whole training."""
        return self.strategy.draw(self.space, np.random.default_rng((self.seed, iteration)))

    def run_iter(self, idx, data_batch) -> None:
        """One iteration, on the subnets drawn for it."""
        subnets = self.draw(self.iter)
        self.model.set_subnet(subnets[0])
        self.runner.call_hook('before_train_iter', batch_idx=idx, data_batch=data_batch)
        outputs = self.strategy.train_step(self.runner, subnets, data_batch)
        self.runner.call_hook(
            'after_train_iter', batch_idx=idx, data_batch=data_batch, outputs=outputs
        )
        self._iter += 1

    def where(self) -> str:
        """Where training stands, for messages."""
        subnets = '; '.join(map(str, self.draw(self._iter)))
        return f'{super().where()}, subnet {subnets}'
