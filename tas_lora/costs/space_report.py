"""What a space costs, as tables and sentences."""

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
    """Milliseconds of the subnets that were timed."""
    kinds = {name: timed[name] for name in ('step', 'forward') if name in timed}
    columns = [text for name in kinds for text in (f'{name}, ms', 'middle half')]
    table = Table('subnet', 'MFLOPs', *columns, title=f'Batches of {timed["batch_size"]} images')
    for name, flops in timed['flops'].items():
        cells = [milliseconds(seconds[name]) for seconds in kinds.values()]
        texts = [(_number(c['median']), ' to '.join(map(_number, c['spread']))) for c in cells]
        table.add_row(name, _number(flops / 1e6), *(text for pair in texts for text in pair))
    return table


def sentences(found: dict) -> list[str]:
    """The rest of the figures, and the hints."""
    return [
        f'Weights: {_weights(found["weights"], found["experts"])}',
        *filter(None, (_memory(found), _training(found), _search(found))),
        *(f'Hint: {hint}' for hint in found['hints']),
    ]


def _weights(weights: dict, experts: tuple[int, int] | None) -> str:
    text = f'supernet {weights["supernet"]:,}'
    if weights['experts']:
        count = '' if experts is None else f' (K = {experts[0]})'
        text += f', experts {weights["experts"]:,}{count}, router {weights["router"]:,}'
    return f'{text}; trained {weights["trained"]:,}'


def _memory(found: dict) -> str | None:
    memory = found.get('timed', {}).get('memory')
    return memory and f'Memory of a step of the largest subnet: {memory / 2**20:,.0f} MiB'


def _training(found: dict) -> str | None:
    train = found.get('training')
    if train is None or train['images'] is None:
        return train and 'Training: the images are not there; tell their number by --images'
    images, steps = f'{train["images"]:,}', f'{train["steps"]:,}'
    text = f'Training: {train["epochs"]} epochs of {images} images, {steps} steps'
    if 'training_seconds' not in found:
        return text
    reading = 'with' if train['reading'] else 'without'
    return f'{text}: {in_words(found["training_seconds"])}, {reading} the reading of images'


def _search(found: dict) -> str | None:
    search = found['search']
    if search['images'] is None:
        return None
    text = f'Search: {search["candidates"]:,} subnets x {search["images"]:,} held-out images'
    if 'search_seconds' not in found:
        return text
    return f'{text}: {in_words(found["search_seconds"])}; a race reads fewer'


def in_words(seconds: float) -> str:
    """Seconds to two digits, in the unit that suits."""
    for unit, size in (('days', 86400), ('h', 3600), ('min', 60)):
        if seconds >= 1.5 * size:
            return f'about {_two_digits(seconds / size)} {unit}'
    return f'about {_two_digits(seconds)} s'


def _two_digits(value: float) -> str:
    return f'{value:.0f}' if value >= 10 else f'{value:.1f}'


def _number(value: float) -> str:
    return f'{value:,.0f}' if value >= 100 else f'{value:.2f}' if value < 10 else f'{value:.1f}'
