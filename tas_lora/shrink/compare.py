"""The last stage: what the original, the found network and others do on the test images."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..atomic_files import write_atomic
from ..models import SupernetClassifier, load_supernet
from ..search import count_flops
from ..structures import SearchSpace, Subnet
from .limits import costs_of
from .page import write_page
from .work import Work

_DRAWS = 500


def compare(work: Work) -> tuple[list[Path], dict, str]:
    """Test all sizes: unordered, ordered and trained; the found one also alone, from scratch."""
    train, original = work.load('train.py'), work.found('original')
    subnets = _subnets(work, SearchSpace.coerce(train.train_cfg.space))
    weights = work.found('train')['weights']
    as_dicts = {name: subnet.to_dict() for name, subnet in subnets.items()}
    path = work.write('compare', 'compare', subnets=as_dicts, weights=weights)
    ordered = work.path('ordered', 'ordered.pth')
    top1 = dict(
        unordered=work.tested('compare', 'original.py', original['weights'], subnets),
        ordered=work.tested('compare', 'ordered/ordered.py', ordered, subnets),
        trained=work.tested('compare', path.name, weights, subnets),
    )
    found = dict(
        data=dict(classes=len(work.images.classes), images=work.images.tested),
        original=original['original'] | dict(top1=top1['unordered']['largest']),
        sizes=_sizes(work, load_supernet(train), subnets, top1),
    )
    alone = [name for name in ('polish', 'scratch') if work.ledger.is_done(name)]
    found['alone'] = {name: _tested_alone(work, name, subnets['found']) for name in alone}
    found['unpolished'] = work.found('polish')['unpolished']
    record, page = work.folder / 'compare.json', work.folder / 'index.html'
    content = dict(request=work.ledger.record['request'], **found)
    write_atomic(record, json.dumps(content, indent=2) + '\n')
    write_page(page, work, found)
    best = next(size for size in found['sizes'] if size['name'] == 'found')
    share = best['macs'] / found['original']['macs']
    numbers = dict(top1=found['alone']['polish'], original=found['original']['top1'], share=share)
    line = f'top-1 {numbers["top1"]:.2f} % with {share:.2f} of the MACs, the original '
    return [record, page], numbers, line + f'{numbers["original"]:.2f} %'


def _subnets(work: Work, space: SearchSpace) -> dict[str, Subnet]:
    """The found subnet, the ends of the space, the largest being the original, and some others."""
    found = Subnet.from_dict(work.found('search')['subnet'])
    chosen = dict(found=found, smallest=space.smallest(), largest=space.largest())
    spec = load_supernet(work.load('order.py')).image_spec
    rng = np.random.default_rng(work.request.seed)
    draws = {space.sample(rng) for _ in range(_DRAWS)} - set(chosen.values())
    draws = sorted(draws, key=lambda subnet: (count_flops(subnet, **spec), str(subnet)))
    count = min(work.request.sizes, len(draws))
    places = np.linspace(0, len(draws) - 1, count + 2)[1:-1] if count else []
    even = {f'random_{i}': draws[round(place)] for i, place in enumerate(places, 1)}
    return chosen | even


def _tested_alone(work: Work, stage: str, subnet: Subnet) -> float:
    """Test top-1 of the found subnet, with the weights that a stage ended with."""
    weights = work.found(stage)['weights']
    return work.tested('compare', f'{stage}.py', weights, dict(found=subnet))['found']


def _sizes(
    work: Work, model: SupernetClassifier, subnets: Mapping[str, Subnet], top1: Mapping
) -> list[dict]:
    """Costs and top-1 of each size, the smallest first."""
    timed = 'latency' in work.request.limits
    sizes = [
        dict(
            name=name,
            subnet=subnet.to_dict(),
            **costs_of(model, subnet, timed),
            top1={way: values[name] for way, values in top1.items()},
        )
        for name, subnet in subnets.items()
    ]
    return sorted(sizes, key=lambda size: size['macs'])
