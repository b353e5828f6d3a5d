"""Costs of a space, as tables and sentences."""

from rich.table import Table

from .space_costs import QUANTILES
from .timing import milliseconds


def sizes(found: dict) -> Table:
    """Parameters and FLOPs of the space."""
    quantiles = [f'{100 * share:.0f} % below' for share in QUANTILES]
    table = Table('', 'smallest', *quantiles, 'largest', title=f'{found["subnets"]:,} subnets')
    for name, row, unit in (('parameters', found['params'], 1), ('MFLOPs', found['flops'], 1e6)):
        values = (row['smallest'], *row['quantiles'], row['largest'])
        table.add_row(name, *(_number(value / unit) for value in values))
    return table


def times(timed: dict) -> Table:
    """Milliseconds of the timed subnets."""
    kinds = {name: timed[name] for name in ('step', 'forward') if name in timed}
    columns = [text for name in kinds for text in (f'{name}, ms', 'middle half')]
    table = Table('subnet', 'MFLOPs', *columns, title=f'Batches of {timed["batch_size"]} images')
    for name, flops in timed['flops'].items():
        cells = [milliseconds(seconds[name]) for seconds in kinds.values()]
        texts = [(_number(c['median']), ' to '.join(map(_number, c['spread']))) for c in cells]
        table.add_row(name, _number(flops / 1e6), *(text for pair in texts for text in pair))
    return table


def sentences(found: dict) -> list[str]:
    """The other figures, and the hints."""
    lines = [f'Weights: {_weights(found["weights"], found["experts"])}']
    if memory := found.get('timed', {}).get('memory'):
        lines.append(f'Memory of a step of the largest subnet: {memory / 2**20:,.0f} MiB')
    if 'training' in found:
        lines.append(_training(found['training'], found.get('training_seconds')))
    if found['search']['images'] is not None:
        lines.append(_search(found['search'], found.get('search_seconds')))
    return [*lines, *(f'Hint: {hint}' for hint in found['hints'])]


def _weights(weights: dict, experts: tuple[int, int] | None) -> str:
    text = f'supernet {weights["supernet"]:,}'
    if weights['experts']:
        count = '' if experts is None else f' (K = {experts[0]})'
        text += f', experts {weights["experts"]:,}{count}, router {weights["router"]:,}'
    return f'{text}; trained {weights["trained"]:,}'


def _training(train: dict, seconds: float | None) -> str:
    if train['images'] is None:
        return 'Training: the images are missing; give their number with --images'
    images, steps = f'{train["images"]:,}', f'{train["steps"]:,}'
    text = f'Training: {train["epochs"]} epochs of {images} images, {steps} steps'
    if seconds is None:
        return text
    reading = 'with' if train['reading'] else 'without'
    return f'{text}: {in_words(seconds)}, {reading} the reading of images'


def _search(search: dict, seconds: float | None) -> str:
    text = f'Search: {search["candidates"]:,} subnets x {search["images"]:,} held-out images'
    return text if seconds is None else f'{text}: {in_words(seconds)}; a race reads fewer'


def in_words(seconds: float) -> str:
    """Seconds to two digits, in a suitable unit."""
    units = (('days', 86400), ('h', 3600), ('min', 60), ('s', 1))
    unit, size = next((each for each in units if seconds >= 1.5 * each[1]), units[-1])
    value = seconds / size
    return f'about {value:.0f} {unit}' if value >= 10 else f'about {value:.1f} {unit}'


def _number(value: float) -> str:
    return f'{value:,.0f}' if value >= 100 else f'{value:.2f}' if value < 10 else f'{value:.1f}'
