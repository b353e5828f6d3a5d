"""Propose a search space from what each dimension costs, and a budget."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from math import ceil, gcd, inf

from ..errors import UserError
from ..structures import SearchSpace, Subnet, ratio_of
from .damage import COSTS, DIMENSIONS

COMFORT = 0.7  # of the budget that the smallest subnet may cost, so that a search has a choice


@dataclass(frozen=True)
class Proposal:
    """A space, and the shares of the original that its smallest subnet costs.

    Args:
        space: The search space; its largest subnet is the original.
        shares: By cost: 'macs' and 'params'.
        added: The dimensions in which it became smaller, with sizes, in the order of worth; the
            sizes that :func:`build_space` rounded away are left out.
    """

    space: SearchSpace
    shares: dict[str, float]
    added: tuple[tuple[str, int], ...]


def check_limits(limits: Mapping[str, float]) -> None:
    """Raise :class:`UserError` unless all are shares of the original's costs."""
    for name, share in limits.items():
        if name not in COSTS:
            raise UserError(f'limit {name} is unknown; choose from {sorted(COSTS)}')
        if not 0 < share <= 1:
            above = ', which is above the original' if share > 1 else ''
            raise UserError(
                f'limit {name} is {share:g}{above}; give a share of what the original costs, '
                'above 0 and up to 1'
            )


def build_space(arch: Subnet, sizes: Mapping[str, Sequence[int]], multiple: int) -> SearchSpace:
    """The space of some sizes in each dimension, next to those of the original.

    A space has MLP ratios, which hold for all its widths. With several widths the hidden sizes
    are rounded up so that each is a multiple at all of them.
    """
    widths = sorted({arch.embed_dim, *sizes.get('width', ())})
    ratios = _ratios(arch, sizes.get('neurons', ()), widths, multiple)
    return SearchSpace(
        embed_dim=widths,
        depth=sorted({arch.depth, *sizes.get('depth', ())}),
        num_heads=sorted({arch.num_heads[0], *sizes.get('heads', ())}),
        mlp_ratio=ratios,
    )


def _ratios(
    arch: Subnet, hidden: Sequence[int], widths: Sequence[int], multiple: int
) -> list[float]:
    """MLP ratios in rising order, the original's last."""
    common = reduce(gcd, widths)
    step = multiple if common % multiple else multiple * arch.embed_dim // common
    found = {arch.mlp_ratio[0]}
    for size in hidden:
        size = -(-size // step) * step  # at the full width
        if size < arch.hidden_dims[0]:
            found.add(max(ratio_of(w * size // arch.embed_dim, w) for w in widths))
    return sorted(found)


def propose_space(
    arch: Subnet,
    spec: Mapping,
    damage: Mapping[str, Sequence[Mapping]],
    limits: Mapping[str, float],
    multiple: int = 32,
) -> Proposal:
    """Widen a space from the original downwards until a budget is comfortably inside.

    Each step adds the next smaller size of a dimension: that with the least damage per cost saved,
    both counted from the original. Damage is bounded, so from one size to the next a dimension that
    is ruined already would look free. The width is left out unless the others do not suffice.

    Args:
        arch: The supernet's size, of equal blocks.
        spec: Arguments of ``count_params`` and ``count_flops``.
        damage: Results of :func:`~.damage.measure_dimensions`.
        limits: Budget as shares of the original's costs: ``dict(macs=0.5)``.
        multiple: Of all widths, as in :func:`~.damage.smaller_choices`.

    Raises:
        UserError: If a limit is not a share, or below what the sizes in ``damage`` can reach.
    """
    check_limits(limits)
    sizes = {name: [] for name in DIMENSIONS}
    left = {name: list(rows[1:]) for name, rows in damage.items()}
    added, full = [], {cost: damage['depth'][0][cost] for cost in limits}
    while True:
        space = build_space(arch, sizes, multiple)
        shares = cost_shares(arch, space.smallest(), spec)
        if all(shares[name] <= COMFORT * share for name, share in limits.items()):
            there = sizes_of(space)
            return Proposal(space, shares, tuple(x for x in added if x[1] in there[x[0]]))
        name = _next_dimension(left, full)
        if name is None:
            _refuse_unreachable(space.smallest(), shares, limits)
        size = left[name].pop(0)['size']
        sizes[name].append(size)
        added.append((name, size))


def sizes_of(space: SearchSpace) -> dict[str, list[int]]:
    """The sizes in each dimension, hidden neurons at the full width."""
    hidden = [int(max(space.embed_dim) * ratio) for ratio in space.mlp_ratio]
    return dict(neurons=hidden, heads=space.num_heads, depth=space.depth, width=space.embed_dim)


def check_reachable(
    arch: Subnet,
    spec: Mapping,
    choices: Mapping[str, Sequence[int]],
    limits: Mapping[str, float],
    multiple: int = 32,
) -> None:
    """Raise :class:`UserError` if not even all ``choices`` together are within a budget."""
    smallest = build_space(arch, choices, multiple).smallest()
    shares = cost_shares(arch, smallest, spec)
    if any(shares[name] > COMFORT * share for name, share in limits.items()):
        _refuse_unreachable(smallest, shares, limits)


def _refuse_unreachable(
    subnet: Subnet, shares: Mapping[str, float], limits: Mapping[str, float]
) -> None:
    name = max(limits, key=lambda n: shares[n] / limits[n])
    least = ceil(100 * shares[name] / COMFORT) / 100
    advice = f'give {least:g} or more, or ' if least <= 1 else ''
    raise UserError(
        f'limit {name}={limits[name]:g} cannot be reached: the smallest subnet of any proposal '
        f'({subnet.embed_dim} wide, {subnet.depth} blocks, {subnet.num_heads[0]} heads, MLP '
        f'{subnet.hidden_dims[0]}) costs {shares[name]:.3g} of the original, and must be at most '
        f'{COMFORT:g} of the limit; {advice}start from a smaller network'
    )


def cost_shares(arch: Subnet, subnet: Subnet, spec: Mapping) -> dict[str, float]:
    """What a subnet costs, as shares of the original."""
    return {name: count(subnet, **spec) / count(arch, **spec) for name, count in COSTS.items()}


def _next_dimension(left: Mapping[str, list], full: Mapping[str, float]) -> str | None:
    """The dimension whose next size does the least damage per cost saved; the width is last.

    ``full`` has the original's costs, for those that are limited.
    """
    open_ones = [name for name in DIMENSIONS if left[name]]
    others = [name for name in open_ones if name != 'width']

    def price(name: str) -> float:
        row = left[name][0]
        saved = sum(1 - row[cost] / total for cost, total in full.items())
        return row['damage'] / saved if saved > 0 else inf

    return min(others or open_ones, key=price, default=None)
