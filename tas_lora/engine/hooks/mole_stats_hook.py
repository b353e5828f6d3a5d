"""Statistics that reveal dead experts or a dead router early."""

import numpy as np
import torch
from mmengine.hooks import Hook
from torch import Tensor

from ...checks import natural
from ...models import SupernetClassifier
from ...registry import HOOKS
from ..model_access import supernet_of

_INITIAL_GATES = 'mole_initial_gates'


@torch.no_grad()
def delta_ratio(model: SupernetClassifier) -> float:
    """|dW| / |W| over the active layers of the active subnet, in Frobenius norms."""
    model.merge_experts()
    layers = [layer for layer in model.backbone.mole_layers() if layer.merged is not None]
    merged = [layer.merged for layer in layers]
    model.unmerge_experts()
    bases = [
        base.sliced_weight(len(weight) // base.parts, weight.shape[1])
        for base, weight in zip(layers, merged, strict=True)
    ]
    change = sum((w - b).square().sum() for w, b in zip(merged, bases, strict=True))
    return float((change / sum(b.square().sum() for b in bases)).sqrt())


@HOOKS.register_module()
class MoLEStatsHook(Hook):
    """Logs how far experts and router have moved, before training and after every epoch.

    Over a fixed set of probe subnets (smallest, largest, and random ones):

    - ``delta_w``: |dW| / |W| of the largest subnet, what the experts add to the supernet; of the
      smallest one if the largest is a parent that is kept;
    - ``gate_shift``: mean L1 distance of a layer's gates from their initial values, 0 to 2;
    - ``top_gate_kept``: fraction of layers whose largest gate is still the initial one.

    Args:
        probes: Random subnets in addition to smallest and largest.
        seed: Seed of the random subnets.
    """

    def __init__(self, probes: int = 8, seed: int = 0):
        self.probes = natural(probes, 'probes', most=10_000)
        self.seed = natural(seed, 'seed')

    def before_train(self, runner):
        # Checkpoints contain the message hub: a resumed run still compares with the start.
        if _INITIAL_GATES not in runner.message_hub.runtime_info:
            gates = self._gates(supernet_of(runner))
            runner.message_hub.update_info(_INITIAL_GATES, gates)
        self._log(runner, runner.epoch)

    def after_train_epoch(self, runner):
        self._log(runner, runner.epoch + 1)  # the loop counts an epoch only after this hook

    def _log(self, runner, epoch: int) -> None:
        model = supernet_of(runner)
        initial = runner.message_hub.get_info(_INITIAL_GATES)
        gates, active = self._gates(model), model.subnet
        space = model.router.space
        largest_is_kept = model.keeps(space.largest())
        model.set_subnet(space.smallest() if largest_is_kept else space.largest())
        delta_w = delta_ratio(model)
        model.set_subnet(active)
        kept = gates.argmax(-1) == initial.argmax(-1)
        stats = dict(
            delta_w=delta_w,
            gate_shift=float((gates - initial).abs().sum(-1).mean()),
            top_gate_kept=float(kept.float().mean()),
        )
        for name, value in stats.items():
            runner.message_hub.update_scalar(f'train/{name}', value)
        runner.logger.info(
            f'Experts after epoch {epoch}: '
            '|dW|/|W| {delta_w:.4f}  gate shift {gate_shift:.4f}  '
            'largest gate kept {top_gate_kept:.1%}'.format(**stats)
        )

    @torch.no_grad()
    def _gates(self, model: SupernetClassifier) -> Tensor:
        """Gates of all probe subnets with experts, one row per layer: (layers, K)."""
        rng, space = np.random.default_rng(self.seed), model.router.space
        drawn = [space.sample(rng) for _ in range(self.probes)]
        subnets = [space.smallest(), space.largest(), *drawn]
        routed = (model.routed_gates(s).flatten(0, 1) for s in subnets if not model.keeps(s))
        return torch.cat(list(routed)).cpu()
