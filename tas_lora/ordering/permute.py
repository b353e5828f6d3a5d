"""Put the units of a supernet in order, so that the best are in every slice."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..errors import UserError
from ..models import SupernetClassifier
from .couplings import couplings, unit_counts


@torch.no_grad()
def apply_order(
    model: SupernetClassifier, importance: Mapping[str, Sequence[Tensor]]
) -> dict[str, list[Tensor]]:
    """Permute neurons and heads of each block, and the channels of the stream, in place.

    The best come first. The network at full size computes what it did before. Without a head the
    channels of its features change places: feature j is the former feature ``channels[0][j]``.

    Args:
        model: A supernet without experts.
        importance: Scores of a :class:`~.scores.ChannelScore`.

    Returns:
        The former places of the units, by kind, as the scores.

    Raises:
        UserError: If the model has experts or another size, or a score is not finite.
    """
    table = couplings(model)
    _check_scores(importance, unit_counts(model))
    orders = {
        kind: [x.argsort(descending=True, stable=True) for x in group]
        for kind, group in importance.items()
    }
    for kind, groups in table.items():
        for group, order in zip(groups, orders[kind], strict=True):
            for coupling in group:
                parameter = model.get_parameter(coupling.name)
                parameter.copy_(coupling.permuted(parameter, order.to(parameter.device)))
    return orders


def _check_scores(scores: Mapping[str, Sequence[Tensor]], counts: dict[str, list[int]]) -> None:
    for kind, sizes in counts.items():
        shapes = [tuple(x.shape) for x in scores[kind]]
        if shapes != [(size,) for size in sizes]:
            raise UserError(f'importance.{kind} has shapes {shapes}, the model has {sizes} units')
        if not all(x.isfinite().all() for x in scores[kind]):
            raise UserError(
                f'importance.{kind} is not finite; do the weights or the images hold NaN?'
            )
