"""Figure of what each dimension of a supernet costs."""

from collections.abc import Mapping, Sequence

from ..report.drawing import BLUE, GREEN, INK, ORANGE, add_legend, canvas

_COLORS = dict(neurons=BLUE, heads=GREEN, depth=ORANGE, width=INK)
_LABELS = dict(agreement='images with the same class', damage='damage', top1='top-1, %')


def draw_damage(
    before: Mapping[str, Sequence[Mapping]], after: Mapping[str, Sequence[Mapping]], measure: str
):
    """Draw damage, and agreement if there are classes, against the share of MACs saved.

    Args:
        before: Results of :func:`~.damage.measure_dimensions` without order; drawn dashed.
        after: Those with order; drawn solid.
        measure: What damage is, for the axis: 'KL divergence'.
    """
    fields = [name for name in _LABELS if name in after['neurons'][0]]
    figure, all_axes = canvas(1.2 + 3.4 * len(fields), 3.4, columns=len(fields))
    for axes, field in zip(all_axes, fields, strict=True):
        for name, color in _COLORS.items():
            for rows, look in ((before, dict(ls='--', alpha=0.6)), (after, dict(marker='.'))):
                label = name if rows is after else f'{name}, unordered'
                points = saved_macs(rows[name]), [row[field] for row in rows[name]]
                axes.plot(*points, color=color, label=label, **look)
        axes.set(xlabel='share of MACs saved', ylabel=_LABELS[field])
        axes.xaxis.set_major_formatter('{x:.0%}')
        if field == 'agreement':
            axes.yaxis.set_major_formatter('{x:.0%}')
        if field == 'damage':
            axes.set(ylabel=f'damage ({measure})', ylim=(0, None))
    add_legend(figure, all_axes[0], columns=4 if len(fields) > 1 else 2)
    return figure


def saved_macs(rows: Sequence[Mapping]) -> list[float]:
    """Share of the first row's MACs that each row saves."""
    return [1 - row['macs'] / rows[0]['macs'] for row in rows]
