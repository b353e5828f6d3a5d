"""Order a supernet before it is sliced, measure each dimension, and propose a space for a budget.

Neurons, heads and channels are permuted by a score, blocks ranked by what their absence costs. The
network at full size computes what it did before. The folder gets ordered.pth (weights), ordered.py
(config), damage.json and damage.png (each dimension alone, before and after), space.json.
"""

import tas_lora.startup  # noqa: F401  # isort: skip  signals, while the rest is imported
import time
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

from mmengine.device import get_device
from rich.progress import Progress

from tas_lora import apis, cli
from tas_lora.checks import natural, positive, usable_device, usable_folder
from tas_lora.config import check_data
from tas_lora.costs.multiples import fast_multiple
from tas_lora.datasets.agreement import check_sources
from tas_lora.ordering import blocks, files, inputs, report
from tas_lora.ordering.damage import Probe, measure_dimensions, smaller_choices
from tas_lora.ordering.outputs import without_head
from tas_lora.ordering.permute import apply_order
from tas_lora.ordering.scores import ChannelScore
from tas_lora.ordering.space import Proposal, check_limits, check_reachable, propose_space
from tas_lora.registry import TASK_UTILS, build_part

LOADERS = ('train_dataloader', 'val_dataloader')


def parse_args():
    """Command line."""
    parser = cli.config_parser(__doc__, work_dir=False)
    parser.add_argument(
        'checkpoint', nargs='?', help='weights (default: load_from or init_cfg of CONFIG)'
    )
    parser.add_argument('--out', required=True, help='folder to write')
    parser.add_argument(
        '--score',
        default='tas_lora.TaylorScore',
        help='registered score: tas_lora.TaylorScore, or without labels tas_lora.OutputScore or '
        'tas_lora.ActivationScore (default: %(default)s)',
    )
    parser.add_argument(
        '--batches', type=int, default=8, help='training batches to score, validation ones to test'
    )
    parser.add_argument(
        '--limit',
        nargs='+',
        default=['macs=0.5'],
        metavar='COST=SHARE',
        help='budget: macs or params, as a share of the original (default: macs=0.5)',
    )
    parser.add_argument(
        '--multiple',
        default='32',
        help="widths of the space are multiples of it; 'auto' times linear layers on the device",
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of images and score')
    parser.add_argument('--device', default=get_device(), help='device to compute on')
    args = parser.parse_args()
    positive(args.batches, '--batches', int)
    natural(args.seed, '--seed')
    args.limits = inputs.read_limits(args.limit)
    check_limits(args.limits)
    inputs.check_multiple(args.multiple)
    usable_device(args.device, '--device')
    usable_folder(args.out, '--out')
    return args


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


def order(model, has_head, score, scored, held_out, choices, clock) -> tuple[dict, Probe]:
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


def examine(args, clock) -> tuple[dict, Proposal, list[Path]]:
    """Load, order, propose and write; returns what to say."""
    cfg = apis.load_config(args.config, args.cfg_options)
    files.check_out(cfg, args)
    check_data(cfg, LOADERS)
    check_sources(cfg, LOADERS)
    score = build_part(TASK_UTILS, args.score, ChannelScore, '--score', seed=args.seed)
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
    found, probe = order(model, has_head, score, scored, held_out, choices, clock)
    proposal = propose_space(arch, spec, found['after'], args.limits, multiple)
    with nullcontext() if has_head else without_head(model):
        found |= dict(smallest=probe(proposal.space.smallest()), chance=probe.chance)
    found |= dict(seconds=clock.seconds, has_head=has_head, unseen=unseen)
    space = report.space_record(proposal, args.limits, multiple, rates)
    return found, proposal, files.write(cfg, args, weights, model, found, space)


def main():
    """Order and report."""
    args = parse_args()
    with Progress(transient=True) as progress:
        found, proposal, paths = examine(args, Clock(progress))
    console = cli.SafeConsole()
    console.print(report.damage_table(found['before'], found['after'], proposal))
    cli.say(*report.sentences(found, proposal), *paths, sep='\n')


if __name__ == '__main__':
    cli.run(main)
