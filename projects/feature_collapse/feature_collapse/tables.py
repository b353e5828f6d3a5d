"""Tables of the records, in Markdown."""

import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from statistics import mean, stdev

import numpy as np

from .plan import METHODS

Values = dict[tuple[int, int], float]  # by (seed, subnet)
Scores = dict[str, Values]  # by family
UPPER_BOUNDS = dict(autoformer='alone_whole', dynas='alone_whole_dynas')  # by supernet


def scores_of(records: Sequence[dict], part: str, measure: str = 'top1') -> Scores:
    """What each family has on a set, by seed and subnet.

    Args:
        records: Records of nets.
        part: 'heldout' or 'test'; records without it are left out.
        measure: 'top1' or 'loss'.
    """
    found = defaultdict(dict)
    for record in records:
        values = (record[part] or {}).get(measure, [])
        first = 0 if record['subnet'] is None else record['subnet']
        for subnet, value in enumerate(values, first):
            found[record['family']][record['seed'], subnet] = value
    return {family: found[family] for family in sorted(found, key=_place)}


def similarities_of(records: Sequence[dict], families: Sequence[dict], part: str) -> dict:
    """Similarity tables (n, n) by family, one a seed."""
    found = defaultdict(list)
    for record in sorted(records, key=lambda r: r['seed']):
        if record[part] and record[part]['similarity']:
            found[record['family']].append(record[part]['similarity'])
    for record in sorted(families, key=lambda r: r['seed']):
        if record['part'] == part:
            found[record['family']].append(record['similarity'])
    return {family: found[family] for family in sorted(found, key=_place)}


def top1_table(records: Sequence[dict], families: Sequence[dict], part: str) -> str:
    """Top-1 of every subnet and their mean, similarity, and what training changed."""
    scores, tables = scores_of(records, part), similarities_of(records, families, part)
    subnets = sorted({subnet for values in scores.values() for _, subnet in values})
    header = ['method', 'seeds', *(f'subnet {i}' for i in subnets), 'mean', 'gap closed, %']
    header.append('of upper bound, %')
    rows = [[*header, 'wrong experts', 'similarity', 'dW/W', 'gate shift', 'epochs', 's']]
    for family, values in scores.items():
        own = [record for record in records if record['family'] == family]
        rows.append(
            [family, len({seed for seed, _ in values})]
            + [spread([v for (_, s), v in values.items() if s == i], 2) for i in subnets]
            + [spread(seed_means(values), 2)]
            + [share_closed(scores, family, 'autoformer', 'independent_same')]
            + [share_of_bound(scores, family)]
            + [spread(wrong_expert_losses(own, part), 2)]
            + [off_diagonal(tables.get(family, []))]
            + [spread([x for r in own for x in r['delta_w'] or []], 3)]
            + [spread([r['gate_shift'] for r in own if r['gate_shift'] is not None], 4)]
            + [own[0]['epochs'], round(mean(r['seconds'] for r in own))]
        )
    return markdown(rows)


def difference_table(
    records: Sequence[dict], part: str, references: Sequence[str] = ('autoformer', 'full_finetune')
) -> str:
    """Paired differences of top-1 over seeds and subnets, with their significance.

    Each family is held against references of its own length and supernet, or of its own part if
    it is from scratch, and against the first of them.
    "p over seeds" takes the mean over a seed's subnets, which share a supernet, as one value; of
    n seeds it is at least 2 / 2^n.
    """
    scores = scores_of(records, part)
    rows = [['method', 'against', 'pairs', 'difference', 'least', 'most', 'p', 'p over seeds']]
    for reference in references:
        for family in scores:
            other = as_long_as(family, reference)
            comparable = reference == references[0] or _is_alike(method_of(family), reference)
            gains = gains_of(scores, family, other)
            pairs = list(gains.values())
            if family != other and comparable and pairs:
                p_values = (sign_flip_p(values) for values in (pairs, seed_means(gains)))
                rows.append(
                    [family, other, len(pairs), spread(pairs, 2)]
                    + [f'{min(pairs):.2f}', f'{max(pairs):.2f}', *(f'{p:.4f}' for p in p_values)]
                )
    return markdown(rows)


def _is_alike(method: str, reference: str) -> bool:
    ours, theirs = METHODS[method], METHODS[reference]
    if ours.start is None:
        return theirs.start is None and ours.part == theirs.part
    return ours.start in (reference, theirs.start)


def as_long_as(family: str, method: str) -> str:
    """The family of ``method`` whose training is as long as that of another; stage 1 has one."""
    later = METHODS[method].start is not None
    return method + stretch_of(family) if later else method


def stretch_of(family: str) -> str:
    """What a family's name says of its length, such as ``_x6``; empty if it is its config's."""
    stretch = re.search(r'_x[\d.]+', family.removeprefix(method_of(family)))
    return stretch[0] if stretch else ''


def gains_of(scores: Scores, family: str, reference: str) -> Values:
    """Differences between two families where both have a seed and subnet."""
    ours, theirs = scores.get(family, {}), scores.get(reference, {})
    return {key: ours[key] - theirs[key] for key in sorted(ours.keys() & theirs.keys())}


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p that the mean is 0, by flipping signs: all ways up to 16 pairs, else 100,000.

    It takes pairs as independent; subnets of one seed share their supernet, so that it is too
    low where seeds matter more than subnets.
    """
    values = np.asarray(differences)
    n = len(values)
    if n <= 16:
        signs = 1 - 2 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)
    else:  # with the signs as they are, so that p is never 0
        drawn = np.random.default_rng(0).choice([-1, 1], size=(99_999, n))
        signs = np.concatenate([np.ones((1, n)), drawn])
    means = np.abs(signs @ values)
    return float((means >= np.abs(values.sum()) - 1e-9).mean())


def share_closed(scores: Scores, family: str, start: str, goal: str) -> str:
    """Share of the gap from ``start`` to ``goal`` that a family closes, percent.

    Over the seeds and subnets that both have; none where ``goal`` gains less than a tenth of a
    point, which is noise.
    """
    gains, gaps = gains_of(scores, family, start), gains_of(scores, goal, start)
    both = gains.keys() & gaps.keys()
    gap = sum(gaps[key] for key in both)
    is_there = gap > 0.1 * len(both)
    return f'{100 * sum(gains[key] for key in both) / gap:.0f}' if is_there else ''


def share_of_bound(scores: Scores, family: str) -> str:
    """Share of what the upper bound gains over a family's supernet, percent."""
    supernet = supernet_of(family)
    bound = bound_of(scores, supernet)
    return share_closed(scores, family, supernet, bound) if family != supernet else ''


def bound_of(scores: Scores, supernet: str) -> str:
    """The family that is a supernet's upper bound.

    As long as its config says, at its rate, if that was trained; else the one with most nets, if
    no other has as many: their scores must not choose.
    """
    method = UPPER_BOUNDS[supernet]
    sizes = {f: len(values) for f, values in scores.items() if method_of(f) == method}
    most = [family for family, size in sizes.items() if size == max(sizes.values())]
    return most[0] if method not in sizes and len(most) == 1 else method


def wrong_expert_losses(records: Sequence[dict], part: str) -> list[float]:
    """What top-1 changes by when subnets get other groups' experts; none without experts."""
    measured = [r[part] for r in records if r[part] and r[part].get('wrong_experts')]
    return [
        wrong - right
        for found in measured
        for wrong, right in zip(found['wrong_experts'], found['top1'], strict=True)
    ]


def seed_means(values: dict[tuple[int, int], float]) -> list[float]:
    """Mean over subnets, one a seed."""
    seeds = sorted({seed for seed, _ in values})
    return [mean(v for (s, _), v in values.items() if s == seed) for seed in seeds]


def off_diagonal(tables: Sequence[Sequence[Sequence[float]]]) -> str:
    """Least, mean and most similarity of two different subnets, over all tables."""
    values = off_diagonals(tables)
    return f'{min(values):.2f}-{max(values):.2f}, {mean(values):.3f}' if values else ''


def off_diagonals(tables: Sequence[Sequence[Sequence[float]]]) -> list[float]:
    """Similarity of all pairs of different subnets, over all tables."""
    return [t[i][j] for t in tables for i, j in combinations(range(len(t)), 2)]


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and, of two or more, standard deviation."""
    if not values:
        return ''
    deviation = f' +-{stdev(values):.{digits}f}' if len(values) > 1 else ''
    return f'{mean(values):.{digits}f}{deviation}'


def markdown(rows: Sequence[Sequence]) -> str:
    """A table whose first row is its header."""
    header, *body = ([str(cell) for cell in row] for row in rows)
    lines = [header, ['---'] * len(header), *body]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines) + '\n'


def _place(family: str) -> tuple[int, str]:
    """Methods in the order of the plan, variations after their method."""
    return [*METHODS].index(method_of(family)), family


def start_of(family: str) -> str | None:
    """The method of the net that a family starts from."""
    return METHODS[method_of(family)].start


def supernet_of(family: str) -> str:
    """What a family is held against: the supernet it starts from, or else AutoFormer's."""
    return start_of(family) or ('dynas' if family == 'dynas' else 'autoformer')


def method_of(family: str) -> str:
    """The method of a family, the longest name that begins it."""
    return max((name for name in METHODS if family.startswith(name)), key=len)
