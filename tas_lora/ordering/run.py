"""One run of tools/order.py: a supernet measured, ordered, measured again, and its space."""

import time
from argparse import Namespace
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

from rich.progress import Progress

from ..config import check_data, load_config
from ..costs.multiples import fast_multiple
from ..datasets.agreement import check_sources
from ..registry import TASK_UTILS, build_part
from . import blocks, files, inputs, report
from .damage import Probe, measure_dimensions, smaller_choices
from .outputs import without_head
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


def _order(model, has_head, score, scored, held_out, choices, clock) -> tuple[dict, Probe]:
    """Measure, order, and measure again; returns what damage.json holds, and the last probe.

    Raises:
        UserError: If the network at full size computes something else afterwards.
    """
    arch, count = model.backbone.arch, sum(map(len, choices.values()))
    least = min(choices['depth'], default=arch.depth)
    judged = nullcontext if has_head else partial(without_head, model)
    with clock('Measuring before', count) as tell, judged():
        first = Probe(model, held_out)
        before = measure_dimensions(first, choices, tell)
    with clock(f'Scoring by {type(score).__name__}'):
        with judged():
            importance = score(model, scored)
        orders = apply_order(model, importance)
    with clock('Ranking blocks', blocks.passes_of(arch.depth, least)) as tell, judged():
        model.backbone.block_order = tuple(blocks.rank_blocks(model, scored, least, tell))
    with clock('Measuring after', count) as tell, judged():
        probe = Probe(model, held_out)
        difference = report.difference(model, first.original, probe.original, orders)
        after = measure_dimensions(probe, choices, tell)
    found = dict(
        difference=difference,
        block_order=list(model.backbone.block_order),
        channels=orders['channels'][0].tolist(),
        before=before,
        after=after,
    )
    return found, probe


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
    files.check_out(cfg, args)
    check_data(cfg, LOADERS)
    check_sources(cfg, LOADERS)
    score = build_part(TASK_UTILS, dict(type=args.score), ChannelScore, '--score', seed=args.seed)
    with clock('Loading'):
        model, weights = inputs.load(cfg, args, score)
    arch, spec, has_head = model.backbone.arch, model.image_spec, weights['has_head']
    multiple, rates = args.multiple, None
    if multiple == 'auto':
        with clock('Timing linear layers'):
            multiple, rates = fast_multiple(args.device, inputs.linear_widths(model))
    multiple = int(multiple)
    choices = smaller_choices(model, multiple)
    check_reachable(arch, spec, choices, args.limits, multiple)
    with clock('Reading images'):
        held_out = inputs.held_out_batches(model, cfg, args, weights['classes'])
        scored, unseen = inputs.scored_batches(model, cfg, args, score)
    found, probe = _order(model, has_head, score, scored, held_out, choices, clock)
    proposal = propose_space(arch, spec, found['after'], args.limits, multiple)
    with nullcontext() if has_head else without_head(model):
        found |= dict(smallest=probe(proposal.space.smallest()), chance=probe.chance)
    found |= dict(seconds=clock.seconds, has_head=has_head, unseen=unseen)
    space = report.space_record(proposal, args.limits, multiple, rates)
    return found, proposal, files.write(cfg, args, weights, model, found, space)
