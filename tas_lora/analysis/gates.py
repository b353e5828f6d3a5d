"""Which experts the router assigns to a subnet, and how the search space uses them."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ..models import SupernetClassifier
from ..models.layers import fold_gates
from ..structures import Subnet
from .experts import expert_layers


def layer_gates(model: SupernetClassifier, subnet: Subnet) -> dict[str, np.ndarray]:
    """Return the mixture of experts in each layer of a subnet, as used for merging.

    Args:
        model: A supernet with experts; see :func:`~tas_lora.analysis.experts.require_experts`.
        subnet: The architecture given to the router.

    Returns:
        Gates (K,) by layer name ('block 0 qkv', ...), which sum to 1, or are 0 for a parent that is
        kept; K is the layer's number of experts without those that are shared. Layers without
        experts are omitted.
    """
    with torch.no_grad():
        gates = model.routed_gates(subnet).cpu()  # (L, 4, K)
    return {
        layer.name: fold_gates(
            gates[layer.place], len(layer.layer.lora_a) - model.router.num_shared
        )
        .double()
        .numpy()
        for layer in expert_layers(model, subnet)
    }


def entropy(shares: np.ndarray) -> float:
    """-sum p ln p, in nats: 0 if one expert has all, ln K if all are equal."""
    used = shares[shares > 0]
    return float(-(used * np.log(used)).sum()) + 0.0  # no -0


def gate_usage(gates: Sequence[Mapping[str, np.ndarray]]) -> dict[str, dict]:
    """Summarise how the experts of each layer are used over many subnets.

    Args:
        gates: :func:`layer_gates` of each subnet; a shallow one lacks some blocks.

    Returns:
        By layer:

        - ``subnets``: number of subnets with this layer;
        - ``usage``: mean gate of each expert, (K,);
        - ``usage_entropy``: its entropy, ln K if the space uses all experts equally;
        - ``entropy``: mean entropy of a subnet's gates, 0 if each uses a single expert;
        - ``largest``: mean of a subnet's largest gate;
        - ``dead``: experts with a gate below half an even share, 1 / 2K, in every subnet.
    """
    usage = {}
    names = dict.fromkeys(name for subnet in gates for name in subnet)
    for name in sorted(names, key=lambda name: int(name.split()[1])):  # 'block 0 qkv', by block
        rows = np.stack([subnet[name] for subnet in gates if name in subnet])  # (subnets, K)
        mean = rows.mean(axis=0)
        usage[name] = dict(
            subnets=len(rows),
            usage=mean,
            usage_entropy=entropy(mean),
            entropy=float(np.mean([entropy(row) for row in rows])),
            largest=float(rows.max(axis=1).mean()),
            dead=np.flatnonzero(rows.max(axis=0) < 0.5 / len(mean)).tolist(),
        )
    return usage


def usage_summary(usage: Mapping[str, Mapping]) -> dict[str, float]:
    """Average :func:`gate_usage` over layers; ``dead`` is a share of all experts."""
    names = ('usage_entropy', 'entropy', 'largest')
    means = {n: float(np.mean([layer[n] for layer in usage.values()])) for n in names}
    dead = sum(len(layer['dead']) for layer in usage.values())
    return means | dict(dead=dead / sum(len(layer['usage']) for layer in usage.values()))
