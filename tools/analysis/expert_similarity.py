"""Compare the experts of each layer, by their weights and by their outputs on images.

To compare two initialisations of the router, pass the other checkpoint by --beside.
"""

from functools import partial
from math import isfinite
from statistics import fmean

from rich.progress import track
from rich.table import Table

from tas_lora import cli
from tas_lora.analysis import subjects
from tas_lora.analysis.experts import MEASURES, expert_similarity
from tas_lora.analysis.features import spread
from tas_lora.analysis.output import write
from tas_lora.analysis.similarity_drawing import draw_layers
from tas_lora.checks import natural


def parse_args():
    """Parse the command line."""
    parser = cli.config_parser(__doc__, work_dir=False)
    subjects.add_arguments(parser)
    subjects.add_images(parser, count=32)
    args = parser.parse_args()
    natural(args.images, '--images')  # 0: weights only
    return args


def lines_of(found: dict) -> dict[str, dict]:
    """Mean similarity of two experts, by measure, checkpoint and layer."""
    return {
        measure: {
            net: {
                layer: spread(matrices[measure])['mean']
                for layer, matrices in layers.items()
                if measure in matrices
            }
            for net, layers in found.items()
        }
        for measure in MEASURES
        if any(measure in matrices for layers in found.values() for matrices in layers.values())
    }


def mean_of(line: dict[str, float]) -> str:
    """Format the mean over the layers that have a number, for the table."""
    values = [value for value in line.values() if isfinite(value)]
    return f'{fmean(values):.4f}' if values else 'experts are zero'


def main():
    """Compare and write."""
    args = parse_args()
    nets = subjects.nets_of(args)
    models = {net.name: subjects.load(net, args, experts=True) for net in nets}
    images, found = subjects.images_of(args) if args.images else [], {}
    for name, model in track(models.items(), 'Comparing experts'):
        found[name] = expert_similarity(model, model.router.space.largest(), images)
    lines = lines_of(found)
    result = dict(data=args.data, images=args.images, mean_by_layer=lines, matrices=found)
    figures = dict(expert_similarity=partial(draw_layers, lines, 'cosine'))
    paths = write(args.out, 'expert_similarity', subjects.origin(args, nets), result, figures)
    table = Table('network', *lines, title='Mean similarity of two experts of a layer')
    for name in models:
        table.add_row(name, *(mean_of(lines[measure][name]) for measure in lines))
    cli.SafeConsole().print(table)
    cli.say(*paths, sep='\n')


if __name__ == '__main__':
    cli.run(main)
