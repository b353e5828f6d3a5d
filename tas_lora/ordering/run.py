"""One run of tools/order.py: a supernet measured, ordered, measured again, and its space."""

import time
from argparse import Namespace
from contextlib import contextmanager
from pathlib import Path

from rich.progress import Progress

from ..config import check_data, load_config
from ..costs.multiples import fast_multiple
from ..datasets.agreement import check_sources
from ..registry import TASK_UTILS, build_part
from . import blocks, files, inputs, report
from .damage import Probe, measure_dimensions, smaller_choices
from .permute import apply_order
from .scores import ChannelScore
from .space import Proposal, check_reachable, propose_space

LOADERS = ('train_dataloader', 'val_dataloader')


class Clock:
    """Shows each phase while it runs, and keeps its seconds."""

    def __init__(self, progress: Progress):
        self.progress, self.seconds = progress, {}

    @contextmanager
    def __call__(self, name: str, total: int | None = None):
        """Time a phase; yields a function to call after each of ``total`` steps."""
        start, task = time.perf_counter(), self.progress.add_task(name, total=total)
        yield lambda: self.progress.advance(task)
        self.progress.remove_task(task)
        self.seconds[name] = time.perf_counter() - start


def _images_of(cfg, args, model, score, classes) -> tuple[list[dict], list[dict]]:
    """Batches to score with, and others to measure on."""
    held_out = inputs.held_out_batches(model, cfg, args, classes)
    return inputs.scored_batches(model, cfg, args, score), held_out


def _order(model, score, scored, held_out, choices, clock) -> dict:
    """Measure, order, and measure again; returns what damage.json holds."""
    arch, count = model.backbone.arch, sum(map(len, choices.values()))
    least = min(choices['depth'], default=arch.depth)
    with clock('Measuring before', count) as tell:
        probe = Probe(model, held_out)
        before, original = measure_dimensions(probe, choices, tell), probe.original
    with clock(f'Scoring by {type(score).__name__}'):
        orders = apply_order(model, score(model, scored))
    with clock('Ranking blocks', blocks.passes_of(arch.depth, least)) as tell:
        model.backbone.block_order = tuple(blocks.rank_blocks(model, scored, least, tell))
    with clock('Measuring after', count) as tell:
        probe = Probe(model, held_out)
        after = measure_dimensions(probe, choices, tell)
    return dict(
        difference=report.difference(model, original, probe.original, orders),
        block_order=list(model.backbone.block_order),
        channels=orders['channels'][0].tolist(),
        before=before,
        after=after,
    )


def order_supernet(args: Namespace, clock: Clock) -> tuple[dict, Proposal, list[Path]]:
    """Load, order, propose and write, as ``tools/order.py`` does.

    Args:
        args: Its arguments; ``limits`` are shares of the original's costs by name.
        clock: Shows the phases.

    Returns:
        What ``damage.json`` holds, the proposal, and the paths of the files.

    Raises:
        UserError: If config, weights or images do not suit, or no subnet is within the limits.
    """
    cfg = load_config(args.config, args.cfg_options)
    check_data(cfg, LOADERS)
    check_sources(cfg, LOADERS)
    score = build_part(TASK_UTILS, dict(type=args.score), ChannelScore, '--score', seed=args.seed)
    with clock('Loading'):
        model, weights = inputs.load(cfg, args)
    rates = None
    if args.multiple == 'auto':
        with clock('Timing linear layers'):
            args.multiple, rates = fast_multiple(args.device)
    arch, spec, multiple = model.backbone.arch, model.image_spec, int(args.multiple)
    choices = smaller_choices(model, multiple)
    check_reachable(arch, spec, choices, args.limits, multiple)
    with clock('Reading images'):
        scored, held_out = _images_of(cfg, args, model, score, weights['classes'])
    found = _order(model, score, scored, held_out, choices, clock)
    proposal = propose_space(arch, spec, found['after'], args.limits, multiple)
    found['smallest'] = Probe(model, held_out)(proposal.space.smallest())
    found |= dict(seconds=clock.seconds, has_head=weights['has_head'])
    space = report.space_record(proposal, args.limits, multiple, rates)
    return found, proposal, files.write(cfg, args, weights, model, found, space)
