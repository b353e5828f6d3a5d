"""Which experts the router gives to a subnet, and how it uses them over the whole space."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ..models import SupernetClassifier
from ..models.layers import fold_gates
from ..structures import Subnet
from .experts import expert_layers


def layer_gates(model: SupernetClassifier, subnet: Subnet) -> dict[str, np.ndarray]:
    """The mixture of experts in each layer of a subnet, as it is merged.

    Args:
        model: A supernet with experts; see :func:`~tas_lora.analysis.experts.require_experts`.
        subnet: The architecture that the router reads.

    Returns:
        By layer, 'block 0 qkv' and so on, the gates (K,), which sum to 1; fewer than K where the
        layer has fewer experts. Layers without experts are left out.
    """
    with torch.no_grad():
        gates = model.router(subnet).cpu()  # (L, 4, K)
    return {
        layer.name: fold_gates(gates[layer.place], len(layer.layer.lora_a)).double().numpy()
        for layer in expert_layers(model, subnet)
    }


def entropy(shares: np.ndarray) -> float:
    """-sum p ln p in nats: 0 for one expert alone, ln K for all alike."""
    used = shares[shares > 0]
    return float(-(used * np.log(used)).sum()) + 0.0  # no -0


def gate_usage(gates: Sequence[Mapping[str, np.ndarray]]) -> dict[str, dict]:
    """What the experts of each layer are used for, over many subnets.

    Args:
        gates: :func:`layer_gates` of each subnet; a shallow one lacks the last layers.

    Returns:
        By layer:

        - ``subnets``: how many of them have it;
        - ``usage``: the mean gate of each expert, (K,);
        - ``usage_entropy``: its entropy, ln K if the space uses all experts alike;
        - ``entropy``: mean entropy of a subnet's own gates, 0 if each takes one expert alone;
        - ``largest``: mean share of a subnet's largest gate;
        - ``dead``: experts whose gate is below half of an even share, 1 / 2K, in every subnet.
    """
    layers = dict.fromkeys(name for subnet in gates for name in subnet)
    return {
        name: _usage(np.stack([subnet[name] for subnet in gates if name in subnet]))
        for name in layers
    }


def usage_summary(usage: Mapping[str, Mapping]) -> dict[str, float]:
    """Means over layers of :func:`gate_usage`, and ``dead`` as a share of all experts."""
    names = ('usage_entropy', 'entropy', 'largest')
    means = {n: float(np.mean([layer[n] for layer in usage.values()])) for n in names}
    dead = sum(len(layer['dead']) for layer in usage.values())
    return means | dict(dead=dead / sum(len(layer['usage']) for layer in usage.values()))


def _usage(gates: np.ndarray) -> dict:
    """Of one layer, from (subnets, K)."""
    mean, dead = gates.mean(axis=0), gates.max(axis=0) < 0.5 / gates.shape[1]
    return dict(
        subnets=len(gates),
        usage=mean,
        usage_entropy=entropy(mean),
        entropy=float(np.mean([entropy(row) for row in gates])),
        largest=float(gates.max(axis=1).mean()),
        dead=np.flatnonzero(dead).tolist(),
    )
