"""Feature collapse during training: how similar subnets are, and whether experts are used."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ...analysis.experts import expert_layers, factor_similarity
from ...analysis.features import feature_similarity, penultimate_features, spread
from ...analysis.gates import gate_usage, layer_gates, usage_summary
from ...checks import natural, positive
from ...errors import UserError, blame
from ...models import SupernetClassifier
from ...registry import HOOKS
from ..model_access import supernet_of


@contextmanager
def undisturbed() -> Iterator[None]:
    """Restore the global generators of Python, NumPy and torch afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@HOOKS.register_module()
class SimilarityHook(Hook):
    """Logs metrics of ``tools/analysis`` before training and every ``interval`` epochs.

    Over a fixed set of distinct subnets and of images:

    - ``feature_similarity``: mean cosine of two subnets' penultimate features;
    - ``expert_similarity``: mean cosine of two experts of a layer, once they are not all zeros;
    - ``gate_entropy``: mean entropy of a layer's gates, in nats;
    - ``dead_experts``: fraction of experts whose gate is below 1 / 2K in all ``gate_draws`` draws.

    The last three need several experts per layer. The visualizer also shows them all as
    ``similarity/...`` by iteration, including the last epoch. Random states, and the mode and
    active subnet of the model, do not change.

    Args:
        interval: Epochs between two logs.
        subnets: Number of subnets to compare, at least 2.
        images: Number of images.
        gate_draws: Number of subnets whose gates are examined. With too few, rare groups do not
            occur and their experts look dead.
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
        model = supernet_of(runner)
        self.space = getattr(runner.train_loop, 'space', None)  # loops of one network lack it
        if model.router is not None:
            self.space = model.router.space
        if self.space is None:
            raise UserError(
                'SimilarityHook compares subnets of a supernet; this config trains one network, '
                'remove the hook'
            )
        self.subnets = self.space.sample_distinct(self.count, np.random.default_rng(self.seed))

    def before_train(self, runner):
        with undisturbed():
            self.batches = self._load_images(runner.cfg)
        self._log(runner, runner.epoch)

    def after_train_epoch(self, runner):
        if self.every_n_epochs(runner, self.interval):
            self._log(runner, runner.epoch + 1)  # the loop counts an epoch after this hook

    def _load_images(self, cfg) -> list[dict]:
        """Batches of images without labels, loaded in this process without workers."""
        config = self.dataloader or cfg.get('heldout_dataloader') or cfg.get('val_dataloader')
        if config is None:
            raise UserError(
                'SimilarityHook: the config has only training images; set SimilarityHook.dataloader'
            )
        with blame('SimilarityHook.dataloader cannot be built'):
            loader = Runner.build_dataloader(dict(config), seed=self.seed)
        total, size = len(loader.dataset), loader.batch_size or self.images
        if total < self.images:
            raise UserError(
                f'SimilarityHook.images is {self.images}, but the dataset has {total}; lower it'
            )
        drawn = np.random.default_rng(self.seed).choice(total, self.images, replace=False)
        inputs = [loader.dataset[index]['inputs'] for index in sorted(drawn.tolist())]
        return [dict(inputs=inputs[i : i + size]) for i in range(0, len(inputs), size)]

    def _log(self, runner, epoch: int) -> None:
        model = supernet_of(runner)
        with undisturbed():
            stats = self._measure(model)
        for name, value in stats.items():
            runner.message_hub.update_scalar(f'train/{name}', value)
        # Also at their own step: scalars logged with iterations omit the last epoch's.
        scalars = {f'similarity/{name}': value for name, value in stats.items()}
        runner.visualizer.add_scalars(scalars, step=runner.iter)
        text = '  '.join(f'{name.replace("_", " ")} {value:.4f}' for name, value in stats.items())
        runner.logger.info(f'Similarity after epoch {epoch}: {text}')

    def _measure(self, model: SupernetClassifier) -> dict[str, float]:
        features = [penultimate_features(model, s, self.batches) for s in self.subnets]
        stats = dict(feature_similarity=spread(feature_similarity(features))['mean'])
        if model.router is None or model.router.num_experts == 1:
            return stats
        layers = expert_layers(model, self.space.largest())
        means = [spread(factor_similarity(*layer.factors)['product'])['mean'] for layer in layers]
        if not np.isnan(means).all():  # NaN is a layer without two nonzero experts
            stats['expert_similarity'] = float(np.nanmean(means))
        rng = np.random.default_rng(self.seed)
        drawn = [self.space.sample(rng) for _ in range(self.gate_draws)]
        usage = usage_summary(gate_usage([layer_gates(model, subnet) for subnet in drawn]))
        return stats | dict(gate_entropy=usage['entropy'], dead_experts=usage['dead'])
