"""How the cost of a step grows with experts, rank, depth, tokens and batch."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace

import torch
from rich.table import Table

from ..structures import SearchSpace, Subnet
from .benchmark import batch_of, measure_hops, supernet
from .timing import milliseconds

AXES = dict(
    num_experts=(1, 4, 12, 27, 64),
    rank=(2, 8, 16, 64),
    depth=(2, 6, 10, 14),
    tokens=(50, 197, 401, 785),
    batch=(1, 4, 16),
)


def measure_growth(
    model_config: Mapping, subnet: Subnet, device: str, batch_size: int, rounds: int
) -> dict[str, dict]:
    """Milliseconds of merge and of a whole step along each axis, all else as in the config."""
    return {
        axis: {
            value: _measure(model_config, subnet, device, batch_size, rounds, axis, value)
            for value in values
        }
        for axis, values in AXES.items()
    }


def _measure(
    model_config: Mapping,
    subnet: Subnet,
    device: str,
    batch_size: int,
    rounds: int,
    axis: str,
    value: int,
) -> dict:
    config = deepcopy(dict(model_config))
    if axis in ('num_experts', 'rank'):
        config['backbone']['mole'][axis] = value
    if axis == 'num_experts':  # one head for all groups, so that K is free
        config['router'].update(init='random', num_experts=value)
    if axis == 'tokens':
        patch = config['backbone'].get('patch_size', 16)
        config['backbone']['img_size'] = patch * round((value - 1) ** 0.5)
    if axis == 'depth':
        heads, ratios = (subnet.num_heads * 2)[:value], (subnet.mlp_ratio * 2)[:value]
        subnet = replace(subnet, num_heads=heads, mlp_ratio=ratios)
    torch.manual_seed(0)
    model = supernet(config).to(device).train()
    model.set_subnet(subnet)
    batch = batch_of(model.image_spec, value if axis == 'batch' else batch_size, device)
    space = SearchSpace.coerce(config['router']['space'])
    hops = measure_hops(model, space, batch, rounds)
    return {name: milliseconds(hops[name]) for name in ('merge', 'merge backward', 'whole step')}


def table(axis: str, points: Mapping[int, dict]) -> Table:
    """One row a value of the axis."""
    columns = (axis, 'merge ms', 'merge backward ms', 'whole step ms')
    found = Table(*columns, title=f'Growth with {axis}')
    for value, row in points.items():
        found.add_row(str(value), *(f'{hop["median"]:.1f}' for hop in row.values()))
    return found
