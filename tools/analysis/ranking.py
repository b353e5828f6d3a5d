"""Compare a supernet's ranking of subnets with training each alone: Kendall's tau and a scatter.

Networks trained alone are checkpoints (--nets), scored on the same images, or scores from JSON
files (--scores). Also checks that the largest subnet beats the smallest.
"""

from functools import partial
from pathlib import Path

from rich.progress import track
from rich.table import Table

from tas_lora import Subnet, UserError, cli
from tas_lora.analysis import subjects
from tas_lora.analysis.output import write
from tas_lora.analysis.ranking import check_sanity, score, taus
from tas_lora.analysis.similarity_drawing import draw_ranking
from tas_lora.analysis.subjects import Net
from tas_lora.checks import bounded, inside
from tas_lora.provenance import read_json


def parse_args():
    """Parse the command line."""
    parser = cli.config_parser(__doc__, work_dir=False)
    subjects.add_arguments(parser)
    subjects.add_images(parser, count=None)
    parser.add_argument(
        '--nets',
        nargs='+',
        default=[],
        metavar='NAME=CONFIG:CHECKPOINT',
        help='networks trained alone',
    )
    parser.add_argument(
        '--scores',
        nargs='+',
        default=[],
        metavar='FILE',
        help='JSON files with a record or a list of records: dict(subnet=..., top1=..., name=...); '
        'top-1 in percent, name optional',
    )
    return parser.parse_args()


def read_scores(path: str) -> list[tuple[str, dict]]:
    """Read the names and records of a file; without a name, the file name is used."""
    content = read_json(path, '--scores')
    records = content if isinstance(content, list) else [content]
    found = []
    for i, record in enumerate(records):
        if not isinstance(record, dict) or not {'subnet', 'top1'} <= set(record):
            raise UserError(f'--scores {path}: a record needs subnet and top1, got {record!r:.80}')
        stem = Path(path).stem if record is content else f'{Path(path).stem}_{i}'
        with inside(f'--scores {path}'):
            top1 = bounded(record['top1'], 'top1', most=100)
            subnet = Subnet.coerce(record['subnet'])
        found.append((str(record.get('name', stem)), dict(subnet=subnet, top1=top1)))
    return found


def trained_alone(args, nets: list[Net], images) -> dict[str, dict]:
    """Return subnet and scores of each network trained alone, two or more."""
    files = [record for path in args.scores for record in read_scores(path)]
    subjects.check_names(
        [*(net.name for net in nets), *(n for n, _ in files)], '--nets or --scores'
    )
    if len(nets) + len(files) < 2:
        raise UserError('a ranking needs two networks trained alone; use --nets or --scores')
    found = {}
    for net in track(nets, 'Scoring networks trained alone', disable=not nets):
        model = subjects.load(net, args)
        subnet = model.backbone.arch
        found[net.name] = dict(subnet=subnet, **score(model, subnet, images))
    return found | dict(files)


def predict(args, nets: list[Net], subnets: dict[str, Subnet], images) -> dict[str, dict]:
    """Score the subnets and the smallest and largest of its space, for each checkpoint."""
    found = {}
    for net in nets:
        model = subjects.load(net, args)
        space = subjects.space_of(net, args, model)
        jobs = track(subnets.items(), f'Scoring subnets of {net.name}')
        scores = {name: score(model, subnet, images) for name, subnet in jobs}
        extremes = dict(smallest=space.smallest(), largest=space.largest())
        ends = {name: score(model, subnet, images) for name, subnet in extremes.items()}
        found[net.name] = dict(subnets=scores, **ends, sane=check_sanity(**ends))
    return found


def print_tables(predicted: dict[str, dict], tau: dict[str, dict]) -> None:
    """Print tau and sanity check of each checkpoint."""
    columns = ('network', 'tau of top-1', 'smallest', 'largest', 'larger is better')
    table = Table(*columns, title='Ranking, top-1 in percent')
    for name, one in predicted.items():
        ends = (f'{one[end]["top1"]:.2f}' for end in ('smallest', 'largest'))
        sane = 'yes' if all(one['sane'].values()) else 'NO'
        table.add_row(name, f'{tau[name]["top1"]:.3f}', *ends, sane)
    cli.SafeConsole().print(table)


def main():
    """Score, compare and write."""
    args = parse_args()
    nets = subjects.nets_of(args)
    singles = [Net.parse(text, '--nets') for text in args.nets]
    images = subjects.images_of(args)
    alone = trained_alone(args, singles, images)
    subnets = {name: record['subnet'] for name, record in alone.items()}
    predicted = predict(args, nets, subnets, images)
    tau = {n: taus(list(p['subnets'].values()), list(alone.values())) for n, p in predicted.items()}
    scatter = {
        name: [(alone[k]['top1'], p['subnets'][k]['top1']) for k in alone]
        for name, p in predicted.items()
    }
    top1 = {name: tau[name]['top1'] for name in tau}
    figures = dict(ranking=partial(draw_ranking, scatter, list(alone), top1))
    result = dict(
        data=args.data, images=len(images.indices), alone=alone, predicted=predicted, tau=tau
    )
    paths = write(args.out, 'ranking', subjects.origin(args, nets + singles), result, figures)
    print_tables(predicted, tau)
    cli.say(*paths, sep='\n')


if __name__ == '__main__':
    cli.run(main)
