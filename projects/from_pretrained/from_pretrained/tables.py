"""Tables of the records, in Markdown."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from scipy import stats

from .subnets import SHARES

Records = Sequence[dict]
PAIRS = (
    ('experts + shared', 'one LoRA'),
    ('experts + shared', 'all weights'),
    ('all weights + experts', 'all weights'),
    ('all weights', 'all weights, labels'),
)


def markdown(rows: Sequence[Sequence]) -> str:
    """Rows as a table; the first is the head."""
    lines = ['| ' + ' | '.join(map(str, row)) + ' |' for row in rows]
    return '\n'.join([lines[0], '| ' + ' | '.join('---' for _ in rows[0]) + ' |', *lines[1:]])


def spread(values: Iterable[float]) -> str:
    """Mean and, of several values, the standard deviation."""
    values = list(values)
    if not values:
        return ''
    deviation = f' +-{np.std(values, ddof=1):.1f}' if len(values) > 1 else ''
    return f'{np.mean(values):.1f}{deviation}'


def by_way(records: Records) -> dict[tuple[str, int], list[dict]]:
    """Records by way and number of steps, in order."""
    groups = defaultdict(list)
    for record in records:
        groups[record['way'], record['iters']].append(record)
    return groups


def fixed_means(records: Records, size: str, split: str = 'test') -> list[float]:
    """Mean top-1 of the fixed subnets of a size, for each record that has them."""
    tops = [record['top1'][split] for record in records]
    fixed = [[v for key, v in top1.items() if key in (f'{size}_1', f'{size}_2')] for top1 in tops]
    return [float(np.mean(values)) for values in fixed if values]


def top1_of(records: Records, key: str, split: str = 'test') -> list[float]:
    """Top-1 of a subnet, for each record that has it."""
    return [record['top1'][split][key] for record in records if key in record['top1'][split]]


def ways_table(records: Records, split: str) -> str:
    """Top-1 by way: means and deviations over seeds."""
    sizes = list(SHARES)
    head = ['way', 'steps', 'seeds', *sizes, *(f'{size}, found' for size in sizes)]
    rows = [[*head, 'original', 'trained', 'CPU minutes']]
    for (way, steps), group in by_way(records).items():
        cells = [spread(fixed_means(group, size, split)) for size in sizes]
        cells += [spread(top1_of(group, f'{size}_found', split)) for size in sizes]
        trained = f'{group[0]["trained"] / 1e6:.1f}M' if group[0]['trained'] else 'none'
        seconds = [record['cpu_seconds'] for record in group if record['cpu_seconds'] is not None]
        minutes = f'{np.mean(seconds) / 60:.1f}' if seconds else ''
        cells += [spread(top1_of(group, 'original', split)), trained, minutes]
        rows.append([way, steps if group[0]['trained'] else 0, len(group), *cells])
    return f'## Ways, top-1 of {split}\n\n{markdown(rows)}'


def others_table(records: Records) -> str:
    """What is trained for one size at a time."""
    rows = [['way', 'size', 'steps', 'seeds', 'MACs', 'untrained', 'test', 'third', 'CPU minutes']]
    groups = defaultdict(list)
    for record in records:
        groups[record['way'], record['size'], record['iters']].append(record)
    for (way, size, steps), group in groups.items():
        top1 = [spread(one['top1'][split] for one in group) for split in ('test', 'third')]
        minutes = np.mean([record['cpu_seconds'] for record in group]) / 60
        macs = np.mean([record['macs'] for record in group]) / 1e6
        untrained = spread(record['untrained'] for record in group)
        rows.append(
            [way, size, steps, len(group), f'{macs:.0f}M', untrained, *top1, f'{minutes:.1f}']
        )
    return f'## One size at a time\n\n{markdown(rows)}'


def differences(records: Records) -> str:
    """Paired differences of ways over seeds and fixed subnets, with p by flipping signs."""
    groups, rows = by_way(records), [['way', 'against', 'size', 'pairs', 'difference', 'p']]
    for way, other in PAIRS:
        for (name, steps), group in groups.items():
            if name == way and (other, steps) in groups:
                rows += _compared(group, groups[other, steps], way, other)
    text = (
        'Test top-1, over pairs of seed and subnet. p of the sign-flip permutation test takes '
        'pairs as independent, which those of one seed are not quite.'
    )
    return f'## Differences\n\n{text}\n\n{markdown(rows)}'


def _compared(group: Records, others: Records, way: str, other: str) -> list[list]:
    rows, by_seed = [], {record['seed']: record for record in others}
    for size in (*SHARES, 'original'):
        values = [
            record['top1']['test'][key] - by_seed[record['seed']]['top1']['test'][key]
            for record in group
            if record['seed'] in by_seed
            for key in record['top1']['test']
            if key.startswith(size) and not key.endswith('found')
        ]
        if values:
            p = sign_flip_p(values)
            rows.append([way, other, size, len(values), f'{np.mean(values):+.1f}', f'{p:.3f}'])
    return rows


def sign_flip_p(values: Sequence[float]) -> float:
    """Two-sided p that the mean is 0; exact up to 13 values."""
    if len(values) < 2:
        return float('nan')
    found = stats.permutation_test(
        (values,), np.mean, permutation_type='samples', n_resamples=9999, rng=0
    )
    return float(found.pvalue)


def targets_table(ways: Records, others: Records) -> str:
    """Subnets that a search found, against the original and what others reach; means over seeds."""
    rows = [['at', 'way', 'seeds', 'of the original', 'over scratch', 'over Torch-Pruning']]
    steps = max(record['iters'] for record in others)
    groups = by_way(ways)
    original = np.mean(top1_of(groups['ordered', steps], 'original'))
    for size in SHARES:
        rivals = [
            np.mean([r['top1']['test'] for r in others if (r['way'], r['size']) == (way, size)])
            for way in ('scratch', 'isomorphic')
        ]
        for (way, length), group in groups.items():
            found = top1_of(group, f'{size}_found')
            if found and length == steps:
                ours = np.mean(found)
                gains = (f'{ours - rival:+.1f}' for rival in rivals)
                rows.append([size, way, len(found), f'{ours / original:.0%}', *gains])
    return f'## Against what was aimed at\n\n{markdown(rows)}'
