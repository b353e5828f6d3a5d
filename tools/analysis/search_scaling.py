"""Simulate a search on more workers: how long it takes, and where workers wait.

The search is that of CONFIG, with this version's own code. How long a task takes is fitted to a
finished or running search in WORK_DIR, from its journal. Losses are drawn; the limits on measured
costs, the surrogate and the baseline are left out.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

from mmengine.config import Config
from rich.progress import track
from rich.table import Table

from tas_lora import SearchSpace, UserError, cli, count_flops, count_params
from tas_lora.analysis.output import write
from tas_lora.analysis.scaling import PLACES, Landscape, Plan, Simulation, TaskTimes, simulate
from tas_lora.analysis.similarity_drawing import draw_scaling
from tas_lora.atomic_files import write_atomic
from tas_lora.checks import bounded, natural, positive
from tas_lora.config import load_config
from tas_lora.costs.benchmark import supernet
from tas_lora.search import Limits, RaceRules, read_history


def parse_args():
    """Parse the command line."""
    parser = cli.config_parser(__doc__, work_dir=False)
    parser.add_argument('work_dir', help='work directory of a search, for the time of its tasks')
    parser.add_argument('--workers', type=int, nargs='+', default=[1, 8, 64, 512])
    parser.add_argument(
        '--overlap', type=int, nargs='*', default=[1], help='overlaps to try, without a race'
    )
    parser.add_argument('--images', type=int, help='held-out images (default: as in WORK_DIR)')
    parser.add_argument(
        '--slow', type=float, default=0.0, help='share of tasks that take 2 to 20 times as long'
    )
    parser.add_argument('--markdown', metavar='FILE', help='write the table to this file')
    parser.add_argument('--out', help='folder for a figure and the numbers as JSON')
    args = parser.parse_args()
    for count in args.workers:
        positive(count, '--workers', int, most=100_000)
    for overlap in args.overlap:
        natural(overlap, '--overlap')
    bounded(args.slow, '--slow')
    if args.images is not None:
        positive(args.images, '--images', int, most=10**6)
    if args.markdown:
        cli.check_output(args.markdown)
    return args


def plan_of(cfg: Config, images: int) -> Plan:
    """The search that a config describes."""
    loop = cfg.get('val_cfg') or {}
    if loop.get('space') is None or loop.get('goals'):
        raise UserError('give the config of a search for the score alone: val_cfg with space')
    spec = supernet(cfg.model).image_spec
    counters = dict(params=partial(count_params, **spec), flops=partial(count_flops, **spec))
    limits = {k: v for k, v in (loop.get('constraints') or {}).items() if k in counters}
    race = loop.get('race')
    low = loop.get('precision', 'float32') != 'float32'
    return Plan(
        SearchSpace.coerce(loop['space']),
        Limits(limits, counters),
        counters['flops'],
        images,
        cfg.val_dataloader['batch_size'],
        dict(loop.get('evolution') or {}),
        None if race is None else RaceRules(**race),
        loop.get('finalists', 10) if low else 0 if race is None else 1,
    )


def variants(plan: Plan, overlaps: list[int]) -> dict[str, Plan]:
    """The same search by racing, if it races, and on all images with some overlaps."""
    whole = replace(plan, race=None, finals=0)
    found = {} if plan.race is None else {'race': plan}
    for overlap in sorted({0, *overlaps}):
        name = 'exhaustive' + (f', overlap {overlap}' if overlap else '')
        found[name] = replace(whole, evolution=plan.evolution | dict(overlap=overlap))
    return found


def table_of(found: dict[str, list[Simulation]], alone: dict[str, float]) -> Table:
    """A row per kind of search and number of workers."""
    columns = ('search', 'images', 'workers', 'time', 'times as fast', 'busy')
    idle = (f'idle: {place}' for place in PLACES)
    table = Table(*columns, *idle, 'driver, s', title='Simulated search')
    for name, runs in found.items():
        for run in runs:
            table.add_row(
                name,
                f'{run.images:.0%}',
                str(run.workers),
                f'{run.seconds / 3600:.2f} h' if run.seconds > 3600 else f'{run.seconds:.0f} s',
                f'{alone[name] / run.seconds:.1f}',
                f'{run.use:.0%}',
                *(f'{share:.0%}' for share in run.lost.values()),
                f'{run.driver:.1f}',
            )
    return table


def main():
    """Simulate, print and write."""
    args = parse_args()
    times = TaskTimes.of(args.work_dir, args.slow)
    lines = read_history(Path(args.work_dir) / 'search_history.jsonl')
    images = args.images or max(line['images'] for line in lines)
    plan = plan_of(load_config(args.config, args.cfg_options), images)
    landscape = Landscape(plan.space, images)
    kinds = variants(plan, args.overlap)
    jobs = [(name, count) for name in kinds for count in args.workers]
    found, alone = {name: [] for name in kinds}, {}
    for name, count in track(jobs, 'Simulating', transient=True):
        run = simulate(kinds[name], count, times, landscape)
        found[name].append(run)
        alone[name] = run.work  # one worker is never idle
    table = table_of(found, alone)
    cli.SafeConsole().print(table)
    if args.markdown:
        write_atomic(args.markdown, cli.markdown([table]))
    if args.out:
        speedups = {
            name: {run.workers: alone[name] / run.seconds for run in runs}
            for name, runs in found.items()
        }
        figures = dict(search_scaling=partial(draw_scaling, speedups))
        made = dict(config=args.config, times=args.work_dir, images=images, slow=args.slow)
        cli.say(
            *write(args.out, 'search_scaling', made, dict(speedups=speedups), figures), sep='\n'
        )


if __name__ == '__main__':
    cli.run(main)
