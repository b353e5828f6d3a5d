"""The stages of a shrink, in order; each writes its config and runs it as our tools do."""

import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from mmengine.device import get_device
from rich.console import Console

from .. import apis
from ..errors import STOPPED, UserError
from ..export import find_formats
from ..export.formats import ROOT
from ..export.job import export_from_config
from ..models import load_supernet
from ..ordering.blocks import passes_of
from ..ordering.run import Clock, order_supernet
from ..ordering.space import Proposal
from ..provenance import read_json
from ..report.page import duration, quantity
from ..structures import Subnet
from ..work_lock import held
from .compare import compare
from .configs import schedules
from .images import ImageFolder
from .ledger import Ledger
from .limits import constraints, costs_of
from .original import original
from .progress import BACKWARD, Meter
from .request import Request
from .work import Work

LOG = 'shrink.log'
_RACE = dict(first=500, growth=1.5, z=3.0, controls=20, strata=20)
_TITLES = dict(
    experts='Experts for slices of the ordered network; the network itself stays as it is.',
    one_lora='One LoRA for all slices of the ordered network, which itself stays as it is.',
    all='All weights of the ordered network learn from a copy of it as it was.',
    both='Experts and all weights of the ordered network learn from a copy of it as it was.',
)


@dataclass(frozen=True)
class Stage:
    """One step.

    Args:
        name: Also of the folder it writes to, if it has one.
        places: Files and folders that it writes.
        run: Does the work; returns the files that later stages depend on, what was found, and a
            line on it.
    """

    name: str
    places: tuple[str, ...]
    run: Callable[[Work], tuple[Iterable[Path], Mapping, str]]


def _order(work: Work) -> tuple[list[Path], dict, str]:
    """Order the original, and propose a space for the limits."""
    start = work.found('original')
    shares, limit = dict(start['shares']), start['limits'].get('latency')
    proposal, paths = _propose(work, shares)
    # Time follows the work only nearly: without a subnet that is fast enough, further down.
    while limit and (latency := _latency(work, proposal.space.smallest())) > limit:
        if shares['macs'] <= start['floor']:
            raise UserError(
                f'--limit latency={limit:g}: the smallest subnet takes '
                f'{quantity(latency, "latency")} now; start again when the machine is less busy, '
                'or ask for more, with another --out'
            )
        shares['macs'] = max(0.8 * shares['macs'], start['floor'])
        work.ledger.reopen('order')  # its config names the limits
        proposal, paths = _propose(work, shares)
    text = ', '.join(f'{name} {share:.2f}' for name, share in proposal.shares.items())
    line = f'{proposal.space.size:,} subnets, the smallest with {text} of the original'
    return [path for path in paths if path.suffix != '.png'], {}, line


def _propose(work: Work, shares: Mapping[str, float]) -> tuple[Proposal, list[Path]]:
    """Run ``tools/order.py``; returns the space, and the files."""
    request, out = work.request, work.path('ordered')
    batches, score = scoring(request, work.images)
    options = dict(out=out, score=score, batches=batches, multiple=str(request.multiple))
    limits = ' '.join(f'{name}={share:.4g}' for name, share in shares.items())
    weights = work.found('original')['weights']
    path = work.write('order', 'order', weights=weights, limits=limits, **options)
    args = Namespace(
        config=str(path),
        cfg_options={},
        checkpoint=None,
        limits=shares,
        seed=request.seed,
        device=get_device(),
        **options,
    )
    _, proposal, paths = order_supernet(args, Clock(work.meter.bar))
    return proposal, paths


def _latency(work: Work, subnet: Subnet) -> float:
    return costs_of(load_supernet(work.load('order.py')), subnet, timed=True)['latency']


def scoring(request: Request, images: ImageFolder) -> tuple[int, str]:
    """Batches to score the order on, and the score: one without labels where they are too few."""
    there, classes = images.trained // request.batch_size, len(images.classes)
    batches = min(there, max(request.batches, -(-classes // request.batch_size)))
    shown = batches * request.batch_size
    knows_all = shown >= classes and images.unseen(shown) <= classes / 3
    return batches, f'tas_lora.{"Taylor" if knows_all else "Output"}Score'


def _train(work: Work) -> tuple[list[Path], dict, str]:
    """Train the slices, with the original as the teacher."""
    request = work.request
    for source in schedules(request.way):
        work.ledger.write_config('train', f'_base_/{source.name}', source.read_text('utf-8'))
    title, way = _TITLES[request.way], request.way
    chosen = dict(title=title, way=way, epochs=request.epochs, amp=request.amp)
    path = work.write('train', 'train', **chosen)
    apis.train(work.load(path), True, work.count('train', 2 + BACKWARD))
    weights = work.folder / 'train' / f'epoch_{request.epochs}.pth'
    return [weights], dict(weights=str(weights)), f'{request.epochs} epochs, way {way}'


def _search(work: Work) -> tuple[list[Path], dict, str]:
    """Find the best subnet within the limits, on held-out images."""
    request, weights, limits = work.request, work.found('train')['weights'], work.found('original')
    path = work.write(
        'search',
        'search',
        weights=weights,
        constraints=constraints(limits['limits']),
        measure='latency' in limits['limits'],
        race=_RACE if work.images.held_out > 1.5 * _RACE['first'] else None,
        population=request.population,
        generations=request.generations,
    )
    cfg = work.load(path)
    cfg.val_cfg.resume = (work.folder / 'search' / 'search.json').exists()
    apis.search(cfg, weights, report=True, hooks=work.count('search'))
    best = work.folder / 'search' / 'best_subnet.json'
    record = read_json(best, 'result of the search', kind=dict)
    share = record['flops'] / limits['original']['macs']
    line = f'{record["candidates"]} subnets scored; the best has {share:.2f} of the MACs'
    return [best], dict(subnet=record['subnet'], top1=record['accuracy/top1']), line


def _polish(work: Work) -> tuple[list[Path], dict, str]:
    """Train the found subnet alone, with the original as the teacher; keep it if that is better."""
    request, epochs, found = work.request, work.request.polished, work.found('search')
    trained, subnet = work.found('train')['weights'], Subnet.from_dict(found['subnet'])
    trains_original = request.way in ('all', 'both')  # so that its teacher is a copy
    teacher = work.path('ordered', 'ordered.pth') if trains_original else None
    own = dict(way=request.way, epochs=epochs, teacher=teacher, weights=trained)
    path = work.write('polish', 'polish', subnet=found['subnet'], **own)
    if load_supernet(work.load(path)).keeps(subnet):
        line = 'the found subnet is the original, which stays as it is'
        return [], dict(weights=trained, unpolished=line), line
    apis.train(work.load(path), True, work.count('polish', 2 + BACKWARD))
    weights = work.folder / 'polish' / f'epoch_{epochs}.pth'
    top1 = work.tested('polish', path.name, weights, dict(found=subnet), held_out=True)['found']
    line = f'{epochs} epochs; {top1:.1f} % of held-out images right, {found["top1"]:.1f} % before'
    if top1 >= found['top1']:
        return [weights], dict(weights=str(weights), unpolished='', top1=top1), line
    unpolished = f'training it alone did not help on held-out images ({line})'
    line += ', so it is exported as it was'
    return [weights], dict(weights=trained, unpolished=unpolished), line


def _export(work: Work) -> tuple[list[Path], dict, str]:
    """Cut the found subnet out, in all formats that are installed."""
    asked = list(work.request.formats)
    formats, skipped = find_formats(asked)
    formats = [ROOT, *(each for each in formats if each != ROOT)]
    cfg, weights = work.load('polish.py'), work.found('polish')['weights']
    checks = export_from_config(cfg, weights, _described(work), work.path('export'), formats)
    failed = [check for check in checks if not check.held]
    if refused := [str(check) for check in failed if check.name in (ROOT.name, *asked)]:
        raise UserError(f'{"; ".join(refused)}; start again with other --formats')
    root, names = work.folder / 'export', [check.name for check in checks if check.held]
    files = [root / 'weights.safetensors', root / 'architecture.json']
    found = dict(asked=asked, formats=names, skipped=[*map(str, failed), *skipped])
    return files, found, '; '.join([', '.join(names), *map(str, failed)])


def _described(work: Work) -> dict:
    """The result of the search, with what the weights that are exported do on its images."""
    record = read_json(work.folder / 'search' / 'best_subnet.json', 'subnet file', kind=dict)
    polished = work.found('polish')
    if not polished['unpolished']:
        del record[record['score']]
        record['accuracy/top1'] = polished['top1']
    return record


def _scratch(work: Work) -> tuple[list[Path], dict, str]:
    """Train the found architecture from random weights, for as many epochs in all."""
    subnet, epochs = work.found('search')['subnet'], work.request.epochs + work.request.polished
    path = work.write('scratch', 'scratch', subnet=subnet, epochs=epochs, amp=work.request.amp)
    apis.train(work.load(path), True, work.count('scratch', 1 + BACKWARD))
    weights = work.folder / 'scratch' / f'epoch_{epochs}.pth'
    return [weights], dict(weights=str(weights)), f'{epochs} epochs'


STAGES = (
    Stage('original', ('original', 'original.py', 'data.py', '_base_'), original),
    Stage('order', ('ordered', 'order.py'), _order),
    Stage('train', ('train', 'train.py'), _train),
    Stage('search', ('search', 'search.py'), _search),
    Stage('polish', ('polish', 'polish.py'), _polish),
    Stage('export', ('export',), _export),
    Stage('scratch', ('scratch', 'scratch.py'), _scratch),
    Stage('compare', ('compare', 'compare.py', 'compare.json', 'index.html'), compare),
)


def shrink(request: Request, console: Console) -> Path:
    """Run all stages that are not done, and return the path of the page.

    Args:
        request: What is asked.
        console: For progress, and a line on each stage.

    Raises:
        UserError: If images, limits or what is in the folder do not suit; or as the stages.
    """
    images = ImageFolder.read(request.data, request.batch_size)
    images.check_out(request.folder)
    console.file = console.file  # stays the terminal when the output of a stage goes to the log
    with held(request.folder):
        ledger = Ledger(request.folder, request.identity() | dict(images=images.digest()))
        stages = _stages(request, ledger)
        done = [stage.name for stage in stages if ledger.is_done(stage.name)]
        seconds = {name: ledger.stages[name]['seconds'] for name in done}
        meter = Meter(console, _work(request, images, stages, ledger), seconds)
        work = Work(request, images, ledger, meter)
        log = (request.folder / LOG).open('a', buffering=1)  # loggers keep it
        with meter.bar:
            for number, stage in enumerate(stages, 1):
                line = 'done before'
                if stage.name not in done:
                    with _told(console), redirect_stdout(log):
                        line = _run(work, stage, number)
                line = f'{number}/{len(stages)} {stage.name}: {line}'
                console.print(line, markup=False, highlight=False, soft_wrap=True)
    return request.folder / 'index.html'


def _stages(request: Request, ledger: Ledger) -> list[Stage]:
    """The stages that are asked for, once what is done is checked; reopens what changes late."""
    has_scratch = request.scratch or ledger.is_done('scratch')
    stages = [stage for stage in STAGES if stage.name != 'scratch' or has_scratch]
    for stage in stages:
        ledger.check(stage.name, stage.places)
    if ledger.is_done('export') and ledger.result('export')['asked'] != list(request.formats):
        ledger.reopen('export')
    if not all(ledger.is_done(stage.name) for stage in stages) and ledger.is_done('compare'):
        ledger.reopen('compare')
    return stages


@contextmanager
def _told(console: Console) -> Iterator[None]:
    """Say how to continue when a signal ends a stage, which says so in the log alone."""
    try:
        yield
    except SystemExit as stop:
        if stop.code == STOPPED:
            console.print('Stopped by a signal; start the same command again to continue')
        raise


def _run(work: Work, stage: Stage, number: int) -> str:
    """Run a stage; returns a line on it."""
    work.ledger.begin(stage.name)
    start = time.monotonic()
    with work.meter.stage(stage.name, number):
        files, found, line = stage.run(work)
    seconds = time.monotonic() - start
    work.ledger.finish(stage.name, files, found, seconds)
    return f'{line} ({duration(seconds)})'


def _work(
    request: Request, images: ImageFolder, stages: Iterable[Stage], ledger: Ledger
) -> dict[str, float]:
    """Work of each stage, in images that pass forward through the original."""
    lengths = request.tuned, request.epochs, request.polished
    tuned, trained, polished = (epochs * images.trained for epochs in lengths)
    batches = min(request.batches, images.trained // request.batch_size) * request.batch_size
    passes = passes_of(12, 6)  # of a usual network
    work = dict(
        original=tuned * (1 + BACKWARD),
        order=batches * passes,
        train=trained * (2 + BACKWARD),
        search=request.population * request.generations * images.held_out,
        polish=polished * (2 + BACKWARD) + images.held_out,
        export=64,
        scratch=(trained + polished) * (1 + BACKWARD),
        compare=(3 * (request.sizes + 3) + 2) * images.tested,  # and two that are trained alone
    )
    if ledger.is_done('original') and ledger.result('original')['own_head']:
        work['original'] = images.held_out
    return {stage.name: float(work[stage.name]) for stage in stages}
