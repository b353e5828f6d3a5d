"""Evolution with and without experts against random search of equal cost.

All subnets of the space are scored once, on held-out and on test images; a search then looks up
what it would have measured, so that many seeds of it cost nothing. Searches read the held-out
loss; the test set is reported of what they found.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch
from feature_collapse import training
from feature_collapse.edits import SPACES
from feature_collapse.measure import predict, scores
from feature_collapse.plan import METHODS, Net
from feature_collapse.progress import Task, work_off
from feature_collapse.searches import Scores, summary
from feature_collapse.settings import Study
from rich.progress import track

from tas_lora import SearchSpace, UserError, cli
from tas_lora.atomic_files import write_atomic
from tas_lora.search.complexity import count_params

HERE = Path(__file__).resolve().parent
SCORES = 'scores'  # kind of the records


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--seeds', type=int, nargs='+', default=[0, 1, 2], help='of the nets')
    add('--methods', nargs='+', choices=METHODS, default=['autoformer', 'mole'])
    add('--space', choices=SPACES, default='search')
    add('--searches', type=int, default=200, help='seeds of each search')
    add('--out', default=HERE / 'results' / 'search', help='folder of the records of run.py')
    add('--work-dir', default='work_dirs/feature_collapse_search', help='its --work-dir')
    add('--data-root', default='data/fashion_mnist', help='folder of the images')
    cli.add_cfg_options(parser)
    return parser.parse_args()


def score_all(study: Study, net: Net, heldout, test) -> Scores:
    """Every subnet of the space, by the weights of ``net``."""
    model, found = training.restore(study, net), []
    for subnet in track([*SearchSpace(**SPACES[study.space])], net.name):
        own = [
            scores(predict(model, subnet, images)[0], labels) for images, labels in (heldout, test)
        ]
        params = count_params(subnet, **model.image_spec)
        found.append((params, own[0]['loss'], own[0]['top1'], own[1]['top1']))
    params, loss, *top1 = zip(*found, strict=True)
    rounded = ([round(x, 3) for x in values] for values in top1)
    return Scores(params, [round(x, 6) for x in loss], *rounded)


def table_task(study: Study, net: Net, heldout, test) -> Task:
    """The task of scoring all subnets of a net, which leaves a record of them."""
    trained = study.records.read(net.name)
    if trained is None or not study.weights(net).is_file():
        raise UserError(
            f'{net.name} has no record in {study.results} or no weights in {study.work}: train it '
            f'by run.py --space {study.space}, or name its folders by --out and --work-dir'
        )
    digest = trained['digest']

    def do() -> str:
        table = asdict(score_all(study, net, heldout, test))
        known = dict(kind=SCORES, net=net.name, digest=digest, seed=net.seed)
        study.records.write(known | table)
        return f'{len(table["loss"])} subnets'

    def is_there() -> bool:
        return study.records.read(net.name, SCORES, digest) is not None

    return Task(net.name, 1, study.folder(net) / 'lock', is_there, lambda: True, do)


def main() -> None:
    """Score, search, write."""
    args = parse_args()
    torch.set_num_threads(1)
    options = dict(options=args.cfg_options, space=args.space)
    study = Study(Path(args.out), Path(args.work_dir), args.data_root, **options)
    nets = [Net(method, seed) for method in args.methods for seed in args.seeds]
    images = [training.load_images(study, name) for name in training.SETS]
    tasks = [table_task(study, net, *images) for net in nets]
    work_off(tasks)
    study.records.gather(SCORES, [task.name for task in tasks])
    space, rows = SearchSpace(**SPACES[args.space]), []
    for net in track(nets, 'searches'):
        table = study.records.read(net.name, SCORES)
        known = Scores(**{name: table[name] for name in Scores.__dataclass_fields__})
        found = summary(space, known, range(args.searches))
        rows += [dict(method=net.method, seed=net.seed, **row) for row in found]
    write_atomic(study.results / 'searches.json', json.dumps(rows, indent=1) + '\n')
    cli.say(f'{study.results / "searches.json"}: {len(rows)} rows')


if __name__ == '__main__':
    cli.run(main)
