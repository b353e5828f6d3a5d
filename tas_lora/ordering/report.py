"""What tools/order.py says: tables of damage, the space, and where the time went."""

from collections.abc import Mapping

from rich.table import Table
from torch import Tensor

from ..models import SupernetClassifier
from .damage import DIMENSIONS
from .drawing import saved_macs
from .files import as_dict
from .space import Proposal

_FORMS = dict(damage='{:.3f}', agreement='{:.1%}', top1='{:.1f}')


def difference(model: SupernetClassifier, before: Tensor, after: Tensor, orders: Mapping) -> float:
    """Largest change of the outputs at full size, relative to the largest output.

    Without a head the outputs are features, whose channels have changed places.
    """
    if model.head is None:
        parts, width = model.backbone.feature_parts, model.backbone.arch.embed_dim
        order = orders['channels'][0].cpu()
        before = before.reshape(len(before), parts, width, -1)[:, :, order].flatten(1)
    return float((after - before).abs().max() / before.abs().max())


def space_record(
    proposal: Proposal, limits: Mapping[str, float], multiple: int, rates: Mapping | None
) -> dict:
    """The proposal for JSON."""
    found = dict(
        space=as_dict(proposal.space),
        subnets=proposal.space.size,
        limits=dict(limits),
        smallest=proposal.shares,
        steps=[list(step) for step in proposal.added],
        multiple=multiple,
    )
    return found if rates is None else found | dict(rates={str(m): r for m, r in rates.items()})


def tables(found: Mapping, proposal: Proposal) -> list[Table]:
    """Damage of each dimension alone, and the seconds of each phase."""
    return [_damage(found['before'], found['after'], proposal), _seconds(found['seconds'])]


def sentences(found: Mapping, proposal: Proposal) -> list[str]:
    """What else is worth a line."""
    shares = ', '.join(f'{name} {share:.2f}' for name, share in proposal.shares.items())
    measures = ', '.join(
        f'{name} {form.format(found["smallest"][name])}'
        for name, form in _FORMS.items()
        if name in found['smallest']
    )
    lines = [
        f'At full size the outputs changed by {found["difference"]:.1e} of their size',
        f'Space: {as_dict(proposal.space)}, {proposal.space.size:,} subnets; the smallest costs '
        f'{shares} of the original; untrained: {measures}',
    ]
    if not found['has_head']:
        lines.append('The head is untrained (init_cfg holds a backbone), so its damage says little')
    return lines


def _damage(before: Mapping, after: Mapping, proposal: Proposal) -> Table:
    fields = [name for name in _FORMS if name in after['neurons'][0]]
    title = 'Each dimension alone, before and after ordering; * is in the space'
    table = Table('', 'size', 'MACs saved', *fields, title=title)
    chosen = set(proposal.added)
    for name in DIMENSIONS:
        for i, saved in enumerate(saved_macs(after[name])):
            cells = []
            for field in fields:
                values = [_FORMS[field].format(rows[name][i][field]) for rows in (before, after)]
                cells.append('  '.join(values))
            size = after[name][i]['size']
            mark = ' *' if i == 0 or (name, size) in chosen else ''
            table.add_row(name, f'{size}{mark}', f'{saved:.1%}', *cells)
    return table


def _seconds(seconds: Mapping[str, float]) -> Table:
    table = Table('phase', 'seconds', 'share', title='Where the time went')
    total = sum(seconds.values())
    for name, value in seconds.items():
        table.add_row(name, f'{value:.1f}', f'{value / total:.0%}')
    return table
