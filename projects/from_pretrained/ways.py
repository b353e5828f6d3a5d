"""Ways to train the slices of a pretrained network, all for the same number of steps.

python projects/from_pretrained/ways.py data/emoji_ordered/ordered.py --iters 300 --amp

CONFIG is of the fine-tuned network, ordered by tools/order.py. Each way begins with it, and what
has a record already is not run again. After some, a search finds a subnet for each share of the
multiply-adds, on held-out pictures.
"""

import argparse
import time
from copy import deepcopy
from pathlib import Path

import torch
from from_pretrained.records import Records
from from_pretrained.subnets import SHARES, subnets_of
from mmengine.config import Config
from mmengine.device import get_device

from tas_lora import SearchSpace, Subnet, apis, cli, count_flops, count_params
from tas_lora.checks import positive
from tas_lora.provenance import read_json

RESULTS = Path(__file__).parent / 'results' / 'ways.json'
SPLITS = ('test', 'third')
PICTURES = 1790  # of the training split, which fetch.py makes the same everywhere
RATES = dict(experts=2e-3, router=1e-1, supernet=4e-5)
KEPT = dict(shared=1, keep=True)
WHOLE = dict(own=False, weights=True)
LABELS = dict(strategy=dict(logits=0.0, features=0.0, labels=1.0))
WIDTHS = [384]  # a narrower residual stream loses most
SEARCHED = ('all weights',)  # and POLISHED goes on with what was found
POLISHED = 'all weights, polished'
NOT_SEARCHED = ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler')
NOT_SEARCHED += ('test_dataloader', 'test_cfg', 'test_evaluator')
EVOLUTION = dict(population=16, generations=3, parents=6, mutations=8, crossovers=8)

# What is trained: experts of groups (own), experts of all subnets (shared), the weights (weights).
WAYS = {
    'unordered': dict(own=False, trains=False),
    'ordered': dict(own=False, trains=False),
    'one LoRA': dict(own=False, **KEPT),
    'one LoRA of rank 80': dict(own=False, rank=80, **KEPT),
    'experts': dict(keep=True),
    'experts + shared': KEPT,
    'experts + shared, LoRA+': dict(lora_plus=16.0, **KEPT),
    'experts + shared, rate x 2.5': dict(rate=5e-3, **KEPT),
    'experts + shared, rank 32': dict(rank=32, **KEPT),
    'experts + shared, sandwich': dict(strategy=dict(subnets='sandwich', num_random=1), **KEPT),
    'experts + shared, labels': LABELS | KEPT,
    'experts + shared, all losses': dict(strategy=dict(labels=1.0), **KEPT),
    'all weights': WHOLE,
    'all weights, labels': LABELS | WHOLE,
    'all weights, rate x 2.5': dict(weight_rate=1e-4, **WHOLE),
    'all weights + experts': dict(shared=1, weights=True),
    POLISHED: WHOLE,
}


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('config', help='ordered.py of tools/order.py')
    add('--unordered', help="config that tools/order.py was given, for the way 'unordered'")
    add('--ways', nargs='+', choices=WAYS, default=list(WAYS))
    add('--iters', type=int, default=300, help='steps of a training')
    add('--seeds', nargs='+', type=int, default=[0])
    add('--amp', action='store_true', help='bfloat16 products')
    add('--no-search', action='store_true', help='test the fixed subnets only')
    add('--out', default=str(RESULTS), help='records')
    args = parser.parse_args()
    positive(args.iters, '--iters', int)
    return args


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
    cfg: Config,
    steps: int,
    own=True,
    weights=False,
    rate=None,
    weight_rate=RATES['supernet'],
    lora_plus=None,
    amp=False,
    **_,
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
        one = adamw(weight_rate) if weights else experts
        cfg.optim_wrapper = dict(type='tas_lora.SupernetOptimWrapper', amp=amp, **one)
        cfg.param_scheduler = schedule
        return
    parts = dict(experts=experts, router=dict(optimizer=dict(type='SGD', lr=RATES['router'])))
    if weights:
        parts['supernet'] = adamw(weight_rate)
    cfg.optim_wrapper = dict(constructor='tas_lora.MoLEOptimWrapperConstructor', amp=amp, **parts)
    cfg.param_scheduler = {name: deepcopy(schedule) for name in parts}


def config_of(args: argparse.Namespace, name: str, seed: int) -> Config:
    """The config of one training."""
    cfg, way = apis.load_config(args.config), WAYS[name]
    cfg.space.embed_dim = WIDTHS
    if name == 'unordered':
        cfg.model.backbone.pop('block_order')
        cfg.load_from = apis.load_config(args.unordered).load_from
    space = cfg.space
    per_epoch = -(-PICTURES // cfg.train_dataloader.batch_size)
    epochs = max(1, round(args.iters / per_epoch))
    add_experts(cfg, **way)
    add_optimizer(cfg, epochs * per_epoch, amp=args.amp, **way)
    strategy = dict(type='tas_lora.ParentDistillation', logits=1.0, features=1.0)
    cfg.train_cfg = dict(
        type='tas_lora.SubnetSamplingTrainLoop',
        max_epochs=epochs,
        val_interval=epochs + 1,
        seed=seed,
        space=space,
        strategy=strategy | way.get('strategy', {}),
    )
    cfg.val_cfg = dict(type='tas_lora.SubnetValLoop', subnets=dict(one='largest'), space=space)
    cfg.test_cfg = dict(type='tas_lora.SubnetTestLoop', subnets=dict(one='largest'), space=space)
    cfg.default_hooks.checkpoint.update(interval=epochs, max_keep_ckpts=1)
    cfg.randomness = dict(seed=seed)
    folder = ''.join(c if c.isalnum() else '_' for c in f'{name}_{args.iters}_{seed}')
    cfg.work_dir = f'{Path(args.config).parent}/ways/{folder}'
    return cfg


def trained(args: argparse.Namespace, name: str, seed: int) -> str:
    """Train, or go on with it, and return the checkpoint."""
    cfg = config_of(args, name, seed)
    if not WAYS[name].get('trains', True):
        return cfg.load_from
    apis.train(cfg, resume=Path(cfg.work_dir, 'last_checkpoint').exists())
    return f'{cfg.work_dir}/epoch_{cfg.train_cfg.max_epochs}.pth'


def found(args: argparse.Namespace, name: str, seed: int, checkpoint: str, full: float) -> dict:
    """The best subnet of each share on held-out pictures."""
    subnets = {}
    for size, share in SHARES.items():
        cfg = config_of(args, name, seed)
        cfg.update(dict.fromkeys(NOT_SEARCHED))
        cfg.work_dir += f'/search_{size}'
        cfg.val_evaluator = [dict(type='tas_lora.CrossEntropy'), dict(type='Accuracy')]
        cfg.val_cfg = dict(
            type='tas_lora.EvolutionarySearchLoop',
            space=cfg.space,
            constraints=dict(flops=(None, share * full)),
            evolution=dict(EVOLUTION, seed=seed),
            precision='bfloat16' if args.amp else 'float32',
            resume=Path(cfg.work_dir, 'search.json').exists(),
        )
        apis.search(cfg, checkpoint)
        best = read_json(Path(cfg.work_dir, 'best_subnet.json'), 'result', kind=dict)
        subnets[f'{size}_found'] = Subnet.from_dict(best['subnet'])
    return subnets


def tested(args, name: str, seed: int, checkpoint: str, subnets: dict[str, Subnet]) -> dict:
    """Top-1 of each subnet on pictures of known and of an unknown hand."""
    top1 = {}
    for split in SPLITS:
        cfg = config_of(args, name, seed)
        as_dicts = {key: subnet.to_dict() for key, subnet in subnets.items()}
        cfg.test_cfg = dict(type='tas_lora.SubnetTestLoop', subnets=as_dicts, space=cfg.space)
        cfg.test_dataloader.dataset.data_prefix = cfg.data_root + split
        with torch.autocast(get_device(), torch.bfloat16, enabled=args.amp):
            metrics = apis.evaluate(cfg, checkpoint)
        top1[split] = {key: round(metrics[f'{key}/accuracy/top1'], 2) for key in subnets}
    return top1


def polish(args: argparse.Namespace, seed: int, before: dict) -> dict:
    """Train each subnet that was found alone, for as many steps again; returns a record."""
    start, top1, checkpoints = time.process_time(), {split: {} for split in SPLITS}, {}
    subnets = {key: value for key, value in before['subnets'].items() if key.endswith('found')}
    for key, subnet in subnets.items():
        cfg = config_of(args, SEARCHED[0], seed)
        cfg.train_cfg.strategy.update(subnets=subnet, checkpoint=cfg.load_from)
        cfg.load_from = f'{cfg.work_dir}/epoch_{cfg.train_cfg.max_epochs}.pth'
        cfg.work_dir += f'/polished_{key}'
        apis.train(cfg, resume=Path(cfg.work_dir, 'last_checkpoint').exists())
        checkpoints[key] = f'{cfg.work_dir}/epoch_{cfg.train_cfg.max_epochs}.pth'
    seconds = time.process_time() - start
    for key, checkpoint in checkpoints.items():
        alone = {key: Subnet.from_dict(subnets[key])}
        for split, found in tested(args, SEARCHED[0], seed, checkpoint, alone).items():
            top1[split] |= found
    costs = {name: {key: before[name][key] for key in subnets} for name in ('macs', 'params')}
    same = dict(way=POLISHED, seed=seed, iters=args.iters, trained=before['trained'])
    return same | dict(cpu_seconds=round(seconds), subnets=subnets, **costs, top1=top1)


def run(args: argparse.Namespace, name: str, seed: int) -> dict:
    """Train one way, search, and test; returns a record."""
    start = time.process_time()
    checkpoint = trained(args, name, seed)
    seconds = time.process_time() - start
    cfg = config_of(args, name, seed)
    model = apis.load_supernet(cfg, checkpoint)
    spec = model.image_spec
    subnets = subnets_of(SearchSpace.coerce(cfg.space.to_dict()), spec)
    full = count_flops(subnets['original'], **spec)
    if name in SEARCHED and not args.no_search:
        subnets |= found(args, name, seed, checkpoint, full)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return dict(
        way=name,
        seed=seed,
        iters=args.iters,
        cpu_seconds=round(seconds),
        trained=count if WAYS[name].get('trains', True) else 0,
        subnets={key: subnet.to_dict() for key, subnet in subnets.items()},
        macs={key: count_flops(subnet, **spec) for key, subnet in subnets.items()},
        params={key: count_params(subnet, **spec) for key, subnet in subnets.items()},
        top1=tested(args, name, seed, checkpoint, subnets),
    )


def record_of(args: argparse.Namespace, name: str, seed: int, records: Records) -> dict:
    """Run one way; a polishing begins with the record of the search."""
    if name != POLISHED:
        return run(args, name, seed)
    return polish(args, seed, records.find(dict(way=SEARCHED[0], seed=seed, iters=args.iters)))


def main() -> None:
    """Run all ways that have no record yet."""
    args = parse_args()
    records = Records(Path(args.out))
    for seed in args.seeds:
        for name in args.ways:
            if not records.has(dict(way=name, seed=seed, iters=args.iters)):
                record = records.add(record_of(args, name, seed, records))
                cli.say(f'{name}, seed {seed}: {record["top1"]["test"]}', flush=True)


if __name__ == '__main__':
    cli.run(main)
