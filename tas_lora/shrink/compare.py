"""The last stage: what the original, the found network and others do on the test images."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .. import apis
from ..atomic_files import write_atomic
from ..models import SupernetClassifier, load_supernet
from ..search import count_flops
from ..structures import SearchSpace, Subnet
from .limits import costs_of
from .page import write_page
from .work import Work

_DRAWS = 500
_OTHERS = ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler')
_OTHERS += ('val_dataloader', 'val_cfg', 'val_evaluator')
_LOOP = 'tas_lora.SubnetTestLoop'


def compare(work: Work) -> tuple[list[Path], dict, str]:
    """Test all sizes: unordered, ordered and trained; the found one also alone, from scratch."""
    train, original = work.load('train.py'), work.found('original')
    subnets = _subnets(work, SearchSpace.coerce(train.train_cfg.space))
    weights = work.found('train')['weights']
    as_dicts = {name: subnet.to_dict() for name, subnet in subnets.items()}
    path = work.write('compare', 'compare', subnets=as_dicts, weights=weights)
    ordered = work.path('ordered', 'ordered.pth')
    top1 = dict(
        unordered=_tested(work, work.path('original.py'), original['weights'], subnets),
        ordered=_tested(work, work.path('ordered', 'ordered.py'), ordered, subnets),
        trained=_tested(work, str(path), weights, subnets),
    )
    found = dict(
        data=dict(classes=len(work.images.classes), images=work.images.tested),
        original=original['original'] | dict(top1=top1['unordered']['original']),
        sizes=_sizes(work, load_supernet(train), subnets, top1),
    )
    alone = [name for name in ('polish', 'scratch') if name in work.ledger.stages]
    found['alone'] = {name: _tested_alone(work, name, subnets['found']) for name in alone}
    record, page = work.folder / 'compare.json', work.folder / 'index.html'
    write_atomic(record, json.dumps(dict(work.ledger.record['request'], **found), indent=2) + '\n')
    write_page(page, work, found)
    best = next(size for size in found['sizes'] if size['name'] == 'found')
    share = best['macs'] / found['original']['macs']
    numbers = dict(top1=found['alone']['polish'], original=found['original']['top1'], share=share)
    line = f'top-1 {numbers["top1"]:.2f} % with {share:.2f} of the MACs, the original '
    return [record, page], numbers, line + f'{numbers["original"]:.2f} %'


def _subnets(work: Work, space: SearchSpace) -> dict[str, Subnet]:
    """The original, the found subnet, the ends of the space, and some between them."""
    found = Subnet.from_dict(work.found('search')['subnet'])
    chosen = dict(
        original=space.largest(), found=found, smallest=space.smallest(), largest=space.largest()
    )
    spec = load_supernet(work.load('order.py')).image_spec
    rng = np.random.default_rng(work.request.seed)
    draws = {space.sample(rng) for _ in range(_DRAWS)} - set(chosen.values())
    draws = sorted(draws, key=lambda subnet: (count_flops(subnet, **spec), str(subnet)))
    count = min(work.request.sizes, len(draws))
    places = np.linspace(0, len(draws) - 1, count + 2)[1:-1] if count else []
    even = {f'random_{i}': draws[round(place)] for i, place in enumerate(places, 1)}
    return chosen | even


def _tested(work: Work, path: str, weights: str, subnets: Mapping[str, Subnet]) -> dict:
    """Test top-1 of each subnet, with the weights of a file."""
    cfg = work.load(path)
    name = Path(path).stem
    cfg.update(dict.fromkeys(_OTHERS))  # none of what trains
    cfg.work_dir, cfg.experiment_name = work.path('compare', name), f'compare_{name}'
    cfg.test_cfg = dict(type=_LOOP, subnets={name: s.to_dict() for name, s in subnets.items()})
    metrics = apis.evaluate(cfg, weights, hooks=work.count('compare'))
    return {name: metrics[f'{name}/accuracy/top1'] for name in subnets}


def _tested_alone(work: Work, stage: str, subnet: Subnet) -> float:
    """Test top-1 of the found subnet, with the weights of a stage that trained nothing else."""
    weights = work.found(stage)['weights']
    return _tested(work, work.path(f'{stage}.py'), weights, dict(found=subnet))['found']


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
        if name != 'original'
    ]
    return sorted(sizes, key=lambda size: size['macs'])
