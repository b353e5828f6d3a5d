"""Subnets exported from Fashion-MNIST learn handwritten digits, and so do the same from scratch.

python tools/prepare_digits.py
python projects/feature_collapse/transfer.py
"""

import argparse
import json
from pathlib import Path

import torch
from feature_collapse import records, training
from feature_collapse.edits import set_data_root
from feature_collapse.plan import METHODS, Net
from feature_collapse.progress import Task, work_off
from feature_collapse.settings import CONFIGS, Study
from mmengine.config import Config

from tas_lora import Subnet, UserError, apis, cli
from tas_lora.models import export_subnet

HERE = Path(__file__).resolve().parent
SCRATCH = 'scratch'
TRANSFER = 'transfer'  # kind of the records


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--seeds', type=int, nargs='+', default=[0, 1, 2])
    whole = [name for name, method in METHODS.items() if not method.alone]
    methods = ['autoformer', 'full_finetune', 'mole']
    add('--methods', nargs='+', choices=whole, default=methods, help='whose nets are exported')
    add('--out', default=HERE / 'results', help='folder of the records of run.py')
    add('--work-dir', default='work_dirs/feature_collapse', help='its --work-dir')
    add('--subnets', type=int, nargs='+', default=[0, 1, 2], help='which of the six')
    add('--data-root', default='data/fashion_mnist', help='folder of the images they were made on')
    add('--digits', default='data/digits', help='folder of the digits')
    cli.add_cfg_options(parser)
    return parser.parse_args()


def drawn_subnets(results: Path) -> tuple[Subnet, ...]:
    """The subnets that run.py has written down."""
    path = results / 'subnets.json'
    if not path.is_file():
        raise UserError(f'{path} does not exist; run.py writes it, name its folder by --out')
    return tuple(map(Subnet.from_dict, json.loads(path.read_text())))


def export(study: Study, net: Net, index: int) -> Path:
    """Cut one of the subnets out of a net; returns the folder."""
    if not study.weights(net).is_file():
        raise UserError(
            f'{study.weights(net)} is not there; run.py --methods {net.method} makes it'
        )
    folder = study.folder(net) / f'exported_{index}'
    return export_subnet(training.restore(study, net), study.subnets[index], folder)


def config_of(start: str, seed: int, exported: Path, args: argparse.Namespace) -> Config:
    """The config of one training on the digits."""
    cfg = apis.load_config(CONFIGS / 'transfer' / 'digits.py', args.cfg_options)
    set_data_root(cfg, args.digits)
    cfg.model.backbone.arch = str(exported / 'architecture.json')
    cfg.load_from = None if start == SCRATCH else str(exported / 'weights.safetensors')
    cfg.randomness = dict(seed=seed)
    cfg.experiment_name = f'transfer_{start}_{exported.name}_seed{seed}'
    cfg.work_dir = str(Path(args.work_dir) / cfg.experiment_name)
    return cfg


def learn(start: str, seed: int, exported: Path, args: argparse.Namespace) -> dict:
    """Train one network on the digits; returns its top-1 on held-out and test images."""
    runner = apis.train(config_of(start, seed, exported, args))
    found = dict(heldout=runner.val_loop.run(), test=runner.test())
    return {name: round(metrics['accuracy/top1'], 3) for name, metrics in found.items()}


def task(study: Study, start: str, seed: int, index: int, args: argparse.Namespace) -> Task:
    """The task of one training, which leaves a record."""
    name = f'{start}_{index}_seed{seed}'

    def do() -> str:
        # From scratch it is the same architecture, whose weights are left.
        net = Net('autoformer' if start == SCRATCH else start, seed)
        found = learn(start, seed, export(study, net, index), args)
        record = dict(kind=TRANSFER, net=name, start=start, seed=seed, subnet=index)
        study.records.write(record | dict(revision=records.revision(), **found))
        return f'test top-1 {found["test"]:.2f}'

    def is_there() -> bool:
        return study.records.read(name, TRANSFER) is not None

    return Task(name, 1, study.work / f'transfer_{name}.lock', is_there, lambda: True, do)


def main() -> None:
    """Export, train, test."""
    args = parse_args()
    torch.set_num_threads(1)
    study = Study(
        Path(args.out), Path(args.work_dir), args.data_root, drawn_subnets(Path(args.out))
    )
    tasks = [
        task(study, start, seed, index, args)
        for seed in args.seeds
        for index in args.subnets
        for start in (SCRATCH, *args.methods)
    ]
    work_off(tasks, lambda line: cli.say(line, flush=True))
    study.records.gather(TRANSFER, [task.name for task in tasks])


if __name__ == '__main__':
    cli.run(main)
