"""Compare the features of subnets by the cosine of each pair, as in Fig. 1 of TAS-LoRA.

Also compares networks that were trained alone, in one group by --nets NAME=CONFIG:CHECKPOINT ...,
or in several groups by GROUP/NAME=CONFIG:CHECKPOINT.
"""

from functools import partial

from rich.progress import track
from rich.table import Table
from torch import Tensor

from tas_lora import UserError, cli
from tas_lora.analysis import subjects
from tas_lora.analysis.features import (
    feature_similarity,
    linear_cka,
    penultimate_features,
    spread,
)
from tas_lora.analysis.output import write
from tas_lora.analysis.similarity_drawing import draw_matrices
from tas_lora.analysis.subjects import Net


def parse_args():
    """Parse the command line."""
    parser = cli.config_parser(__doc__, work_dir=False)
    subjects.add_arguments(parser)
    subjects.add_subnets(parser, count=6)
    subjects.add_images(parser, count=256)
    parser.add_argument(
        '--nets',
        nargs='+',
        default=[],
        metavar='NAME=CONFIG:CHECKPOINT',
        help='networks trained alone, two or more per group',
    )
    parser.add_argument('--cka', action='store_true', help='also compute linear CKA')
    return parser.parse_args()


def grouped(nets: list[Net]) -> dict[str, list[Net]]:
    """Group networks; each group has two or more."""
    groups = {}
    for net in nets:
        group, slash, name = net.name.rpartition('/')
        groups.setdefault(group if slash else 'trained alone', []).append((name, net))
    for group, members in groups.items():
        if len(members) < 2:
            raise UserError(f'--nets: {group!r} is one network; give two or more to compare')
    return groups


def features_of_all(args, nets: list[Net], groups: dict) -> tuple[dict, dict]:
    """Return the subnets, and the features by panel and row name."""
    images = subjects.images_of(args)
    subnets, jobs = {}, []
    for net in nets:
        model = subjects.load(net, args)
        subnets = subnets or subjects.subnets_of(args, subjects.space_of(net, args, model))
        jobs += [(net.name, name, model, subnet) for name, subnet in subnets.items()]
    if len(subnets) < 2:
        raise UserError('one subnet has no other to compare with; give two or more')
    for group, members in groups.items():
        models = [(name, subjects.load(net, args)) for name, net in members]
        jobs += [(group, name, model, model.backbone.arch) for name, model in models]
    found = {}
    for panel, name, model, subnet in track(jobs, 'Computing features'):
        found.setdefault(panel, {})[name] = penultimate_features(model, subnet, images)
    return subnets, found


def compare(measure, features: dict[str, dict[str, Tensor]]) -> dict[str, dict]:
    """Return the matrix of a measure, its rows and the spread off its diagonal, by panel."""
    matrices = {name: measure(list(rows.values())) for name, rows in features.items()}
    return {
        name: dict(rows=list(features[name]), **spread(matrix), matrix=matrix)
        for name, matrix in matrices.items()
    }


def main():
    """Compare and write."""
    args = parse_args()
    nets = subjects.nets_of(args)
    alone = [Net.parse(text, '--nets') for text in args.nets]
    subjects.check_names([net.name for net in alone], '--nets')
    groups = grouped(alone)
    subjects.check_names([*(net.name for net in nets), *groups], '--beside or --nets')
    subnets, features = features_of_all(args, nets, groups)
    measures = dict(cosine=feature_similarity) | (dict(cka=linear_cka) if args.cka else {})
    found = {name: compare(measure, features) for name, measure in measures.items()}
    figures = {}
    for name, panels in found.items():
        matrices = {panel: (one['matrix'], one['rows']) for panel, one in panels.items()}
        figures[f'feature_{name}'] = partial(draw_matrices, matrices, name)
    result = dict(subnets=subnets, data=args.data, images=args.images, **found)
    made_by = subjects.origin(args, nets + alone)
    paths = write(args.out, 'feature_similarity', made_by, result, figures)
    table = Table('network', 'measure', 'mean', 'minimum', 'maximum', title='Feature similarity')
    for measure, panels in found.items():
        for name, panel in panels.items():
            table.add_row(name, measure, *(f'{panel[k]:.4f}' for k in ('mean', 'min', 'max')))
    cli.SafeConsole().print(table)
    cli.say(*paths, sep='\n')


if __name__ == '__main__':
    cli.run(main)
