"""Show the experts that the router assigns to subnets, by layer, and their use over the space."""

from functools import partial

import numpy as np
from rich.progress import track
from rich.table import Table

from tas_lora import cli
from tas_lora.analysis import subjects
from tas_lora.analysis.gates import gate_usage, layer_gates, usage_summary
from tas_lora.analysis.output import write
from tas_lora.analysis.similarity_drawing import draw_gates, draw_usage
from tas_lora.checks import positive


def parse_args():
    """Parse the command line."""
    parser = cli.config_parser(__doc__, work_dir=False)
    subjects.add_arguments(parser)
    subjects.add_subnets(parser, count=4)
    parser.add_argument(
        '--draws',
        type=int,
        default=500,
        help='random subnets to represent the space; with too few, rare experts look dead',
    )
    args = parser.parse_args()
    positive(args.draws, '--draws', int, most=1_000_000)
    return args


def main():
    """Query the router and write."""
    args = parse_args()
    nets = subjects.nets_of(args)
    models = {net.name: subjects.load(net, args, experts=True) for net in nets}
    subnets = subjects.subnets_of(args, next(iter(models.values())).router.space)
    result, figures = dict(subnets=subnets, draws=args.draws, nets={}), {}
    table = Table('network', 'usage entropy', 'entropy', 'largest gate', 'dead', title='Gates')
    for name, model in models.items():
        gates = {which: layer_gates(model, subnet) for which, subnet in subnets.items()}
        rng, space = np.random.default_rng(args.seed), model.router.space
        drawn = [space.sample(rng) for _ in range(args.draws)]
        usage = gate_usage([layer_gates(model, s) for s in track(drawn, f'Gates of {name}')])
        summary = usage_summary(usage)
        result['nets'][name] = dict(gates=gates, usage=usage, summary=summary)
        figures[f'gates_{name}'] = partial(draw_gates, gates)
        figures[f'usage_{name}'] = partial(draw_usage, usage)
        numbers = [f'{summary[k]:.3f}' for k in ('usage_entropy', 'entropy', 'largest')]
        table.add_row(name, *numbers, f'{summary["dead"]:.1%}')
    paths = write(args.out, 'gates', subjects.origin(args, nets), result, figures)
    cli.SafeConsole().print(table)
    cli.say(*paths, sep='\n')


if __name__ == '__main__':
    cli.run(main)
