"""Numbers that show dead experts or a dead router at once."""

import numpy as np
import torch
from mmengine.hooks import Hook
from torch import Tensor

from ...checks import natural
from ...models import SupernetClassifier
from ...registry import HOOKS
from ...structures import Subnet
from ..model_access import supernet_of

_INITIAL_GATES = 'mole_initial_gates'


@torch.no_grad()
def delta_ratio(model: SupernetClassifier) -> float:
    """|dW| / |W| over the active layers of the active subnet, Frobenius norms."""
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
    """Logs how far experts and router have gone, at the end of every epoch.

    Over a fixed set of probe subnets (smallest, largest, and some drawn from a seed):

    - ``delta_w``: |dW| / |W| of the largest, what the experts add to the supernet;
    - ``gate_shift``: mean L1 distance of a layer's gates from those at the start, 0 to 2;
    - ``top_gate_kept``: share of layers whose largest gate is still the one it was.

    Args:
        probes: Subnets drawn besides smallest and largest.
        seed: Seed of the draws.
    """

    def __init__(self, probes: int = 8, seed: int = 0):
        self.probes = natural(probes, 'probes', most=10_000)
        self.seed = natural(seed, 'seed')

    def before_train(self, runner):
        # Kept in the message hub, hence in checkpoints: a resumed run compares with the start.
        if _INITIAL_GATES not in runner.message_hub.runtime_info:
            gates = self._gates(supernet_of(runner))
            runner.message_hub.update_info(_INITIAL_GATES, gates)
        self._log(runner, runner.epoch)

    def after_train_epoch(self, runner):
        self._log(runner, runner.epoch + 1)  # the loop counts an epoch only after this hook

    def _log(self, runner, epoch: int) -> None:
        model = supernet_of(runner)
        initial = runner.message_hub.get_info(_INITIAL_GATES)
        gates = self._gates(model)
        kept = gates.argmax(-1) == initial.argmax(-1)
        stats = dict(
            delta_w=self._delta_ratio(model),
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

    def _subnets(self, model: SupernetClassifier) -> list[Subnet]:
        rng, space = np.random.default_rng(self.seed), model.router.space
        drawn = [space.sample(rng) for _ in range(self.probes)]
        return [space.smallest(), space.largest(), *drawn]

    def _gates(self, model: SupernetClassifier) -> Tensor:
        """Gates of all probes, one row a layer: (layers, K)."""
        with torch.no_grad():
            gates = [model.router(subnet).flatten(0, 1) for subnet in self._subnets(model)]
        return torch.cat(gates).cpu()

    def _delta_ratio(self, model: SupernetClassifier) -> float:
        active = model.subnet
        model.set_subnet(model.router.space.largest())
        ratio = delta_ratio(model)
        model.set_subnet(active)
        return ratio
