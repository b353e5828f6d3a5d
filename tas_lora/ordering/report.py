"""What tools/order.py says: a table of damage, and the space."""

from collections.abc import Mapping

from rich.table import Table
from torch import Tensor

from ..errors import UserError
from ..models import SupernetClassifier
from .damage import DIMENSIONS
from .drawing import saved_macs
from .files import as_dict
from .inputs import shortened
from .space import Proposal, sizes_of

_ROUNDING = 1e-4
_FORMS = dict(damage='{:.3f}', agreement='{:.1%}', top1='{:.1f}')


def difference(model: SupernetClassifier, before: Tensor, after: Tensor, orders: Mapping) -> float:
    """Largest change of the outputs at full size, relative to the largest output.

    Without a head the outputs are features, whose channels have changed places.

    Raises:
        UserError: If it is more than rounding.
    """
    if model.head is None:
        parts, width = model.backbone.feature_parts, model.backbone.arch.embed_dim
        order = orders['channels'][0].cpu()
        before = before.reshape(len(before), parts, width, -1)[:, :, order].flatten(1)
    found = float((after - before).abs().max() / before.abs().max())
    if not found <= _ROUNDING:  # NaN neither
        raise UserError(
            f'ordering changed the outputs at full size by {found:.1e} of their size, more than '
            f'{_ROUNDING:g}; nothing is written. Is a part of the model not of tas_lora?'
        )
    return found


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
    return found if rates is None else found | dict(rates=rates)


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
    agreement, chance = found['smallest'].get('agreement'), found['chance']
    if chance is not None and agreement <= chance:
        lines.append(
            f'That is chance ({chance:.1%} get the most frequent class), so the proposal rests on '
            'single dimensions; a larger --limit leaves more to train from'
        )
    if found['unseen']:
        lines.append(f'No image was scored of {shortened(found["unseen"])}')
    if not found['has_head']:
        lines.append('The head is untrained (init_cfg holds a backbone): features were compared')
    return lines


def damage_table(before: Mapping, after: Mapping, proposal: Proposal) -> Table:
    """Damage of each dimension alone; * marks the sizes in the space."""
    fields = [name for name in _FORMS if name in after['neurons'][0]]
    title = 'Each dimension alone, before and after ordering; * is in the space'
    table = Table('', 'size', 'MACs saved', *fields, title=title)
    chosen = sizes_of(proposal.space)
    for name in DIMENSIONS:
        for i, saved in enumerate(saved_macs(after[name])):
            cells = []
            for field in fields:
                values = [_FORMS[field].format(rows[name][i][field]) for rows in (before, after)]
                cells.append('  '.join(values))
            size = after[name][i]['size']
            mark = ' *' if size in chosen[name] else ''
            table.add_row(name, f'{size}{mark}', f'{saved:.1%}', *cells)
    return table
