"""Limits of a shrink: what is asked in absolute numbers, and whether any subnet is within them."""

from collections.abc import Mapping
from math import ceil

from ..costs.deployed import Deployed
from ..errors import UserError
from ..models import SupernetClassifier
from ..ordering.damage import COSTS, smaller_choices
from ..ordering.space import COMFORT, build_space
from ..report.page import quantity
from ..structures import Subnet

MEASURE = dict(device='cpu', batch_size=1)  # as in the config of the search


def costs_of(model: SupernetClassifier, subnet: Subnet, timed: bool) -> dict[str, float]:
    """``macs`` and ``params`` of a subnet; with ``timed``, ``latency`` in ms, too."""
    costs = {name: count(subnet, **model.image_spec) for name, count in COSTS.items()}
    if timed:
        costs |= dict(latency=Deployed.of_model(model, MEASURE).latency(subnet)['latency'])
    return costs


def settled(limits: Mapping[str, float], model: SupernetClassifier, multiple: int) -> dict:
    """Compare limits with what the original and the smallest of its subnets cost.

    Returns:
        ``original``, its costs; ``limits`` in absolute numbers; ``shares``, what
        ``tools/order.py`` is asked for; ``floor``, the least share of MACs that it can be.

    Raises:
        UserError: If no subnet is within a limit, with the range that is.
    """
    arch, timed = model.backbone.arch, 'latency' in limits
    smallest = build_space(arch, smaller_choices(model, multiple), multiple).smallest()
    full, least = costs_of(model, arch, timed), costs_of(model, smallest, timed)
    asked = {
        name: value * full[name] if name in COSTS and value <= 1 else value
        for name, value in limits.items()
    }
    for name, value in asked.items():
        low = least[name] / COMFORT if name in COSTS else least[name]
        if value < low or (name in COSTS and value > full[name]):
            _refuse(name, limits[name], value, low, full[name])
    shares = {name: value / full[name] for name, value in asked.items() if name in COSTS}
    floor = min(1.0, (1 + 1e-9) * least['macs'] / full['macs'] / COMFORT)  # rounded upwards
    if timed:  # time follows the work, nearly
        share = max(asked['latency'] / full['latency'], floor)
        shares['macs'] = min(share, shares.get('macs', 1.0), 1.0)
    return dict(original=full, limits=asked, shares=shares, floor=floor)


def _refuse(name: str, given: float, value: float, low: float, full: float) -> None:
    share = f' ({ceil(100 * low / full) / 100:g} to 1 of the original)' if name in COSTS else ''
    raise UserError(
        f'--limit {name}={given:g} asks for {quantity(value, name)}, and limits from '
        f'{quantity(low, name)} to {quantity(full, name)} can be met{share}; change it, or start '
        'from another network'
    )


def constraints(limits: Mapping[str, float]) -> dict[str, tuple]:
    """Absolute limits as ``val_cfg.constraints`` of a search has them."""
    names = dict(macs='flops')
    return {
        names.get(name, name): (None, value if name == 'latency' else int(value))
        for name, value in limits.items()
    }
