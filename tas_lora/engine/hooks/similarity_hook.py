"""Feature collapse while it happens: how alike subnets are, and whether experts are used."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ...analysis.experts import expert_layers, factor_similarity
from ...analysis.features import (
    feature_similarity,
    penultimate_features,
    spread,
)
from ...analysis.gates import gate_usage, layer_gates, usage_summary
from ...checks import natural, positive
from ...errors import UserError, blame
from ...models import SupernetClassifier
from ...registry import HOOKS
from ...structures import SearchSpace
from ..model_access import supernet_of


@contextmanager
def undisturbed() -> Iterator[None]:
    """Behind it, the global generators of Python, NumPy and torch are as they were before."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def expert_similarity_of(model: SupernetClassifier) -> float:
    """Mean over layers and pairs of the cosine of what experts add, at the largest subnet.

    Returns:
        NaN if no layer has two experts that are not zero, as before training.
    """
    layers = expert_layers(model, model.router.space.largest())
    means = [spread(factor_similarity(*layer.factors)['product'])['mean'] for layer in layers]
    return float(np.mean([mean for mean in means if np.isfinite(mean)] or [np.nan]))


@HOOKS.register_module()
class SimilarityHook(Hook):
    """Logs, before training and every some epochs, the numbers of ``tools/analysis``.

    Over distinct subnets drawn once and the same images each time:

    - ``feature_similarity``: mean cosine of two subnets' penultimate features;
    - ``expert_similarity``: mean cosine of two experts of a layer, once they are not all zeros;
    - ``gate_entropy``: mean entropy of a layer's gates, in nats;
    - ``dead_experts``: share of experts whose gate is below 1 / 2K in all of ``gate_draws`` draws.

    The last three need experts, with several in a layer. The visualizer has all of them as
    ``similarity/...`` by iterations done, too, the last epoch's included. Neither random states
    nor the mode and subnet of the model are left changed.

    Args:
        interval: Epochs from one log to the next.
        subnets: How many to compare, 2 or more.
        images: How many.
        gate_draws: Subnets whose gates are counted; among too few, rare groups do not come, and
            their experts look dead.
        seed: Seed of subnets and images.
        dataloader: Config of the dataloader of the images; by default the config's
            ``heldout_dataloader``, or else its ``val_dataloader``.

    Raises:
        UserError: If an argument is out of range, or space or images are missing or too few.
    """

    def __init__(
        self,
        interval: int = 1,
        subnets: int = 6,
        images: int = 256,
        gate_draws: int = 500,
        seed: int = 0,
        dataloader: dict | None = None,
    ):
        self.interval = positive(interval, 'interval', int)
        self.count = positive(subnets, 'subnets', int, most=1000)
        self.images = positive(images, 'images', int)
        self.gate_draws = positive(gate_draws, 'gate_draws', int, most=100_000)
        self.seed = natural(seed, 'seed')
        self.dataloader = dataloader
        if self.count < 2:
            raise UserError(f'must be 2 or more to compare, got {subnets}', 'subnets')

    def before_run(self, runner):
        self.space = _space_of(runner)
        self.subnets = self.space.sample_distinct(self.count, np.random.default_rng(self.seed))

    def before_train(self, runner):
        with undisturbed():
            self.batches = self._load_images(runner.cfg)
        self._log(runner, runner.epoch)

    def after_train_epoch(self, runner):
        if self.every_n_epochs(runner, self.interval):
            self._log(runner, runner.epoch + 1)  # the loop counts an epoch only after this hook

    def _load_images(self, cfg) -> list[dict]:
        """The images as batches without labels, in this process: no worker is started."""
        config = self.dataloader or cfg.get('heldout_dataloader') or cfg.get('val_dataloader')
        if config is None:
            raise UserError(
                'SimilarityHook: the config has no images beside those of the training; set '
                'SimilarityHook.dataloader'
            )
        with blame('SimilarityHook.dataloader cannot be built'):
            loader = Runner.build_dataloader(dict(config), seed=self.seed)
        there, size = len(loader.dataset), loader.batch_size or self.images
        if there < self.images:
            raise UserError(f'SimilarityHook.images is {self.images}, but there are {there}')
        drawn = np.random.default_rng(self.seed).choice(there, self.images, replace=False)
        inputs = [loader.dataset[index]['inputs'] for index in sorted(drawn.tolist())]
        return [dict(inputs=inputs[i : i + size]) for i in range(0, len(inputs), size)]

    def _log(self, runner, epoch: int) -> None:
        model = supernet_of(runner)
        with undisturbed():
            stats = self._measure(model)
        for name, value in stats.items():
            runner.message_hub.update_scalar(f'train/{name}', value)
        # At their own step, too: what is logged with iterations lacks the last epoch's.
        scalars = {f'similarity/{name}': value for name, value in stats.items()}
        runner.visualizer.add_scalars(scalars, step=runner.iter)
        text = '  '.join(f'{name.replace("_", " ")} {value:.4f}' for name, value in stats.items())
        runner.logger.info(f'Likeness after epoch {epoch}: {text}')

    def _measure(self, model: SupernetClassifier) -> dict[str, float]:
        features = [penultimate_features(model, s, self.batches) for s in self.subnets]
        stats = dict(feature_similarity=spread(feature_similarity(features))['mean'])
        if model.router is None or model.router.num_experts == 1:
            return stats
        likeness = expert_similarity_of(model)
        if np.isfinite(likeness):
            stats['expert_similarity'] = likeness
        rng = np.random.default_rng(self.seed)
        drawn = [self.space.sample(rng) for _ in range(self.gate_draws)]
        usage = usage_summary(gate_usage([layer_gates(model, subnet) for subnet in drawn]))
        return stats | dict(gate_entropy=usage['entropy'], dead_experts=usage['dead'])


def _space_of(runner) -> SearchSpace:
    """The space of the router, or else of the training loop."""
    model = supernet_of(runner)
    space = getattr(runner.train_loop, 'space', None)  # loops of one network have none
    if model.router is None and space is None:
        raise UserError(
            'SimilarityHook compares subnets of a supernet; this config trains one network, '
            'leave the hook out'
        )
    return space if model.router is None else model.router.space
