"""Ways to train the slices of a pretrained network, for the same number of steps.

python projects/from_pretrained/ways.py data/emoji_ordered/ordered.py --iters 300

CONFIG is of the fine-tuned network, ordered by tools/order.py. Each way begins with it, and what
has a record already is not run again. It took 4 to 5 minutes a way on a CPU core of its own.
"""

import argparse
import json
import time
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from rich.table import Table

from tas_lora import SearchSpace, Subnet, apis, cli, count_flops
from tas_lora.atomic_files import write_atomic
from tas_lora.checks import positive
from tas_lora.packaged import command
from tas_lora.provenance import read_json, versions
from tas_lora.report.drawing import BLUE, GREEN, GREY, ORANGE, canvas, style

RESULTS = Path(__file__).parent / 'results' / 'ways.json'
SPLITS = ('test', 'third')
PICTURES = 1790  # of the training split, which fetch.py makes the same everywhere
RATES = dict(experts=2e-3, router=1e-1, supernet=4e-5)
KEPT = dict(shared=1, keep=True)
DRAWN = {'nothing': GREY, 'one LoRA': GREEN, 'experts + shared': BLUE, 'all weights': ORANGE}

# What is trained: experts of groups (own), experts of all subnets (shared), the weights (weights).
WAYS = {
    'nothing': dict(own=False),
    'one LoRA': dict(own=False, shared=1),
    'one LoRA, original kept': dict(own=False, **KEPT),
    'one LoRA of rank 80, original kept': dict(own=False, rank=80, **KEPT),
    'experts': dict(keep=True),
    'experts + shared': KEPT,
    'experts + shared, LoRA+': dict(lora_plus=16.0, **KEPT),
    'experts + shared, rate x 2.5': dict(rate=5e-3, **KEPT),
    'experts + shared, rank 32': dict(rank=32, **KEPT),
    'experts + shared, sandwich': dict(strategy=dict(subnets='sandwich', num_random=1), **KEPT),
    'experts + shared, labels': dict(strategy=dict(logits=0.0, features=0.0, labels=1.0), **KEPT),
    'experts + shared, all losses': dict(strategy=dict(labels=1.0), **KEPT),
    'all weights': dict(own=False, weights=True),
    'all weights + experts': dict(shared=1, weights=True),
}


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='ordered.py of tools/order.py')
    parser.add_argument('--ways', nargs='+', choices=WAYS, default=list(WAYS))
    parser.add_argument('--iters', type=int, default=300, help='steps of a training')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0])
    parser.add_argument('--out', default=str(RESULTS), help='records')
    args = parser.parse_args()
    positive(args.iters, '--iters', int)
    return args


def subnets_of(space: SearchSpace) -> dict[str, Subnet]:
    """The subnets that are tested after every training, by name, from small to large."""
    rng = np.random.default_rng(7)
    drawn = (space.sample(rng) for _ in range(4))
    drawn = sorted(drawn, key=lambda subnet: sum(subnet.hidden_dims) * subnet.depth)
    named = {f'drawn {i + 1}': subnet for i, subnet in enumerate(drawn)}
    return dict(smallest=space.smallest()) | named | dict(largest=space.largest())


def add_experts(cfg: Config, own=True, shared=0, keep=False, weights=False, rank=8, **_) -> None:
    """Give the model the experts of a way."""
    space, model = cfg.space, cfg.model
    if own:
        groups = len(space.num_heads) * len(space.mlp_ratio) * len(space.embed_dim)
        model.backbone.mole = dict(num_experts=groups + shared, rank=rank)
        model.router = dict(type='tas_lora.LSTMRouterHead', space=space, shared=shared)
        model.freeze_supernet = not weights
    elif shared:
        model.backbone.mole = dict(num_experts=1, rank=rank)
        model.router = dict(type='tas_lora.SingleExpertHead', space=space)
    model.keep_parent = keep
    cfg.custom_hooks = [dict(type='tas_lora.MoLEHook')] if own or shared else []


def add_optimizer(
    cfg: Config, steps: int, own=True, weights=False, rate=None, lora_plus=None, **_
) -> None:
    """Give the config the optimizer of a way, with 30 steps of warm-up and a cosine."""

    def adamw(lr: float) -> dict:
        return dict(optimizer=dict(type='AdamW', lr=lr, weight_decay=0.05))

    experts = adamw(rate or RATES['experts'])
    if lora_plus:
        experts['paramwise_cfg'] = dict(custom_keys=dict(lora_b=dict(lr_mult=lora_plus)))
    schedule = [
        dict(type='LinearLR', start_factor=0.05, begin=0, end=30, by_epoch=False),
        dict(type='CosineAnnealingLR', T_max=steps - 30, begin=30, end=steps, by_epoch=False),
    ]
    if not own:
        one = adamw(RATES['supernet']) if weights else experts
        cfg.optim_wrapper = dict(type='tas_lora.SupernetOptimWrapper', **one)
        cfg.param_scheduler = schedule
        return
    parts = dict(experts=experts, router=dict(optimizer=dict(type='SGD', lr=RATES['router'])))
    if weights:
        parts['supernet'] = adamw(RATES['supernet'])
    cfg.optim_wrapper = dict(constructor='tas_lora.MoLEOptimWrapperConstructor', **parts)
    cfg.param_scheduler = {name: deepcopy(schedule) for name in parts}


def config_of(args: argparse.Namespace, name: str, seed: int) -> Config:
    """The config of one training."""
    cfg, way = apis.load_config(args.config), WAYS[name]
    space = cfg.space
    per_epoch = -(-PICTURES // cfg.train_dataloader.batch_size)
    epochs = max(1, round(args.iters / per_epoch))
    add_experts(cfg, **way)
    add_optimizer(cfg, epochs * per_epoch, **way)
    cfg.train_cfg = dict(
        type='tas_lora.SubnetSamplingTrainLoop',
        max_epochs=epochs,
        val_interval=epochs + 1,
        seed=seed,
        space=space,
        strategy=dict(type='tas_lora.ParentDistillation', logits=1.0, features=1.0)
        | way.get('strategy', {}),
    )
    named = {k: s.to_dict() for k, s in subnets_of(SearchSpace.coerce(space.to_dict())).items()}
    cfg.val_cfg = dict(type='tas_lora.SubnetValLoop', subnets=named, space=space)
    cfg.test_cfg = dict(type='tas_lora.SubnetTestLoop', subnets=named, space=space)
    cfg.default_hooks.checkpoint.update(interval=epochs, max_keep_ckpts=1)
    cfg.randomness = dict(seed=seed)
    folder = ''.join(c if c.isalnum() else '_' for c in f'{name}_{seed}')
    cfg.work_dir = f'{Path(args.config).parent}/ways/{folder}'
    return cfg


def trained(args: argparse.Namespace, name: str, seed: int) -> str:
    """Train, or go on with it, and return the checkpoint."""
    cfg = config_of(args, name, seed)
    if name == 'nothing':
        return cfg.load_from
    apis.train(cfg, resume=Path(cfg.work_dir, 'last_checkpoint').exists())
    return f'{cfg.work_dir}/epoch_{cfg.train_cfg.max_epochs}.pth'


def run(args: argparse.Namespace, name: str, seed: int) -> dict:
    """Train one way, and test its subnets on pictures of known and of an unknown hand."""
    start = time.perf_counter()
    checkpoint = trained(args, name, seed)
    seconds, top1 = time.perf_counter() - start, {}
    cfg = config_of(args, name, seed)
    model = apis.load_supernet(cfg, checkpoint)
    subnets = subnets_of(SearchSpace.coerce(cfg.space.to_dict()))
    for split in SPLITS:
        cfg = config_of(args, name, seed)
        cfg.test_dataloader.dataset.data_prefix = cfg.data_root + split
        found = apis.evaluate(cfg, checkpoint)
        top1[split] = {key: round(found[f'{key}/accuracy/top1'], 2) for key in subnets}
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return dict(
        way=name,
        seed=seed,
        iters=args.iters,
        seconds=round(seconds),
        trained=0 if name == 'nothing' else count,
        flops={key: count_flops(subnet, **model.image_spec) for key, subnet in subnets.items()},
        top1=top1,
    )


def show(records: list[dict]) -> None:
    """Print a table of the test pictures."""
    columns = list(records[0]['top1']['test'])
    table = Table('way', 'steps', 'trained', *columns, title='Test top-1, %')
    for record in records:
        cells = (f'{record["top1"]["test"][column]:.1f}' for column in columns)
        table.add_row(record['way'], str(record['iters']), f'{record["trained"]:,}', *cells)
    cli.SafeConsole().print(table)


def draw(records: list[dict]):
    """Top-1 of the test pictures against multiply-adds, for the ways that differ most."""
    figure, (axes,) = canvas(5.2, 3.6)
    for name, color in DRAWN.items():
        for record in [record for record in records if record['way'] == name]:
            flops, top1 = record['flops'], record['top1']['test']
            subnets = sorted(flops, key=flops.get)
            x, y = [flops[key] / 1e6 for key in subnets], [top1[key] for key in subnets]
            axes.plot(x, y, '.-', color=color, label=f'{name}, seed {record["seed"]}')
    axes.set(xlabel='multiply-adds of a picture, millions', ylabel='test top-1, %')
    axes.legend()
    return figure


def main() -> None:
    """Run all ways that have no record yet; print a table, and draw a figure next to it."""
    args = parse_args()
    out = Path(args.out)
    records = read_json(out, 'records')['records'] if out.exists() else []
    done = {(record['way'], record['seed'], record['iters']) for record in records}
    for seed in args.seeds:
        for name in [name for name in args.ways if (name, seed, args.iters) not in done]:
            records.append(run(args, name, seed))
            made_by = dict(command=command(), versions=versions(), threads=torch.get_num_threads())
            out.parent.mkdir(parents=True, exist_ok=True)
            content = dict(made_by=made_by, records=records)
            write_atomic(out, json.dumps(content, indent=1) + '\n')
    show(records)
    with style():
        draw(records).savefig(out.with_suffix('.png'))


if __name__ == '__main__':
    cli.run(main)
