"""The whole experiment, or parts of it, from the images to one record for each trained net.

python projects/feature_collapse/run.py

What has a record is not made again, and a net that was stopped is trained on from its last
checkpoint. The same command may run several times at once, one process a core: each takes what
no other is at. The test set is read when all trainings are over.
"""

import argparse
import json
from pathlib import Path

import torch
from feature_collapse import stages, training
from feature_collapse.edits import SPACES, drawn_subnets
from feature_collapse.plan import METHODS, PARTS, nets_of
from feature_collapse.settings import Study

from tas_lora import Subnet, UserError, cli
from tas_lora.atomic_files import write_atomic
from tas_lora.cfg_options import Options

HERE = Path(__file__).resolve().parent
QUICK = dict(scale=0.05, images=500, options={'train_dataloader.dataset.count': 2560})
EXPERIMENT = ('supernet', 'stage2', 'independent', 'alone')
TEST = 'test'


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--seeds', type=int, nargs='+', default=[0, 1, 2])
    add(
        '--parts',
        nargs='+',
        choices=[*PARTS, TEST],
        help='by default, without --methods, no ablations, no past',
    )
    add('--methods', nargs='+', choices=METHODS, help='these alone, of the parts')
    add('--subnets', type=int, nargs='+', default=range(6), help='of those trained alone')
    add('--space', choices=SPACES, default='nano', help='another one needs other folders')
    add('--first', type=float, default=1.0, help='length of stage 1; another one, other folders')
    add('--stretch', type=float, default=1.0, help='length of the trainings after stage 1')
    add('--scale', type=float, default=1.0, help='length of all trainings')
    add('--rates', type=float, nargs='+', default=[None], help='their rates, in turn')
    add('--quick', action='store_true', help='a few epochs on few images: does it all run?')
    add('--out', help='folder of the records')
    add('--work-dir', help='folder of the checkpoints')
    add('--data-root', default='data/fashion_mnist', help='folder of the images')
    cli.add_cfg_options(parser)
    return parser.parse_args()


def study_of(args: argparse.Namespace) -> Study:
    """What the command line asks for; the subnets are drawn, and written down at once."""
    work = Path(args.work_dir or f'work_dirs/feature_collapse{"_quick" * args.quick}')
    out = Path(args.out) if args.out else (work if args.quick else HERE) / 'results'
    extent = QUICK if args.quick else dict(scale=args.scale)
    extent = extent | dict(first=args.first, space=args.space)
    options = Options(extent.get('options', {}) | args.cfg_options, args.cfg_options.texts)
    subnets = drawn_subnets(args.space)
    settle_subnets(out / 'subnets.json', subnets)
    return Study(out, work, args.data_root, subnets, **(extent | dict(options=options)))


def settle_subnets(path: Path, subnets: tuple[Subnet, ...]) -> None:
    """Write the subnets down; refuse a folder that holds results of others."""
    drawn = [subnet.to_dict() for subnet in subnets]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(drawn, indent=1) + '\n')
    elif json.loads(path.read_text()) != drawn:
        raise UserError(f'{path} has other subnets: the space has changed; give another --out')


def main() -> None:
    """Train, compare, test."""
    args = parse_args()
    torch.set_num_threads(1)  # on tensors this small a second one gains nothing
    study = study_of(args)
    parts = args.parts or [*(PARTS if args.methods else EXPERIMENT), TEST]
    methods = [m.name for m in METHODS.values() if m.part in parts]
    methods = [name for name in args.methods or methods if name in methods]
    nets = [
        net
        for rate in args.rates
        for net in nets_of(args.seeds, methods, args.subnets, args.stretch, rate)
    ]
    nets = list(dict.fromkeys(nets))
    heldout = training.load_images(study, 'heldout')
    stages.make_all(study, nets, heldout)
    stages.compare_families(study, nets, heldout, 'heldout')
    if TEST in parts:
        test = training.load_images(study, TEST)
        stages.test_all(study, nets, test)
        stages.compare_families(study, nets, test, TEST)


if __name__ == '__main__':
    cli.run(main)
