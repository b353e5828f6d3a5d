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


def fixed_mean(record: dict, size: str, split: str = 'test') -> float:
    """Mean top-1 of the fixed subnets of a size."""
    top1 = record['top1'][split]
    keys = [key for key in top1 if key.startswith(size) and not key.endswith('found')]
    return float(np.mean([top1[key] for key in keys]))


def ways_table(records: Records, split: str) -> str:
    """Top-1 by way: means and deviations over seeds."""
    sizes = list(SHARES)
    head = ['way', 'steps', 'seeds', *sizes, *(f'{size}, found' for size in sizes)]
    rows = [[*head, 'original', 'trained', 'CPU minutes']]
    for (way, steps), group in by_way(records).items():
        top1 = [record['top1'][split] for record in group]
        cells = [spread(fixed_mean(record, size, split) for record in group) for size in sizes]
        cells += [
            spread(one[f'{size}_found'] for one in top1 if f'{size}_found' in one) for size in sizes
        ]
        trained = f'{group[0]["trained"] / 1e6:.1f}M' if group[0]['trained'] else 'none'
        minutes = np.mean([record['cpu_seconds'] for record in group]) / 60
        cells += [spread(one['original'] for one in top1), trained, f'{minutes:.1f}']
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
    """The ends that were set, and what came: test top-1, means over seeds, the longest training."""
    rows = [['at', 'of the original', 'over scratch', 'over Torch-Pruning', 'way']]
    steps = max(record['iters'] for record in others)
    groups = by_way(ways)
    original = np.mean([r['top1']['test']['original'] for r in groups['ordered', steps]])
    for size in SHARES:
        rival = {
            way: np.mean(
                [r['top1']['test'] for r in others if (r['way'], r['size']) == (way, size)]
            )
            for way in ('scratch', 'isomorphic')
        }
        for way in ('experts + shared', 'all weights'):
            ours = np.mean([r['top1']['test'][f'{size}_found'] for r in groups[way, steps]])
            gains = (f'{ours - rival[name]:+.1f}' for name in rival)
            rows.append([size, f'{ours / original:.0%}', *gains, f'{way}, found'])
    return f'## Against what was aimed at\n\n{markdown(rows)}'
