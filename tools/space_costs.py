"""Estimate what a search space costs ahead of training: sizes, seconds and memory.

Needs no data: images are noise, weights are random. Times are of one process on this device,
including the load of other programs. Validations and checkpoints come on top.
"""

import json
from statistics import median

import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import DATASETS
from rich.progress import Progress

from tas_lora import SearchSpace, UserError, apis, cli, count_flops
from tas_lora.atomic_files import write_atomic
from tas_lora.checks import natural, positive
from tas_lora.config import check_data
from tas_lora.costs import space_costs as costs
from tas_lora.costs import space_report as report
from tas_lora.costs import space_timing as timing
from tas_lora.costs.benchmark import batch_of, supernet
from tas_lora.datasets.agreement import check_sources
from tas_lora.engine.runner.strategy import build_strategy
from tas_lora.errors import blame
from tas_lora.models import SupernetClassifier


def parse_args():
    """Command line."""
    parser = cli.config_parser(__doc__, work_dir=False)
    parser.add_argument(
        '--images',
        type=int,
        help='size of the whole training set, including held-out images (default: the size of '
        "the config's data set, if its files exist)",
    )
    parser.add_argument('--draws', type=int, default=2000, help='random subnets to count')
    parser.add_argument('--subnets', type=int, default=3, help='random subnets to time')
    parser.add_argument('--rounds', type=int, default=5, help='timed batches per subnet')
    parser.add_argument('--seed', type=int, default=0, help='seed of the draws and the weights')
    parser.add_argument('--device', choices=('cpu', 'cuda'), default=get_device())
    parser.add_argument('--amp', action='store_true', help='training steps in bfloat16 autocast')
    parser.add_argument('--no-timing', action='store_true', help='count only')
    parser.add_argument('--json', metavar='FILE', help='write all figures to this file')
    args = parser.parse_args()
    for field in ('draws', 'rounds', *(['images'] if args.images is not None else [])):
        positive(getattr(args, field), f'--{field}', int)
    for field in ('subnets', 'seed'):
        natural(getattr(args, field), f'--{field}', most=10**6)
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise UserError("--device is 'cuda', but there is no GPU; leave the option out")
    if args.json:
        cli.check_output(args.json)
    return args


def space_of(cfg: Config, path: str) -> SearchSpace:
    """The space that a config trains or searches."""
    for field in ('train_cfg', 'val_cfg', 'test_cfg'):
        if (cfg.get(field) or {}).get('space') is not None:
            return SearchSpace.coerce(cfg[field]['space'])
    raise UserError(f'{path} has no space: none of train_cfg, val_cfg and test_cfg names one')


def build_model(cfg: Config, space: SearchSpace, args) -> SupernetClassifier:
    """Build the supernet, in training mode."""
    torch.manual_seed(args.seed)
    with blame('the model cannot be built'):
        model = supernet(cfg.model)
    if not isinstance(model, SupernetClassifier):
        raise UserError(f'{args.config} has no tas_lora.SupernetClassifier')
    model.check_space(space, 'the space')
    return model.to(args.device).train()


def read_data(cfg: Config, name: str, images: int | None) -> dict:
    """Number of images of a dataloader, and the time to read one if the files exist.

    Args:
        cfg: The config.
        name: Name of the dataloader.
        images: Size of the whole training set, in place of counting the files.
    """
    loader = cfg.get(name) or {}
    if 'dataset' not in loader:
        return dict(images=None, reading=0.0)
    if images is not None:
        return dict(images=costs.images_read(loader['dataset'], images), reading=0.0)
    try:
        check_data(cfg, (name,))
    except UserError:  # no files yet, which is fine here
        return dict(images=None, reading=0.0)
    with blame(f'{name} cannot be built or read'):
        check_sources(cfg, (name,))
        dataset = DATASETS.build(loader['dataset'])
        return dict(images=len(dataset), **timing.try_reading(dataset))


def training_of(
    cfg: Config, space: SearchSpace, model: SupernetClassifier, images: int | None
) -> dict:
    """Epochs, images, seconds to read one, steps if known, and subnets and teachers per step."""
    epochs, data = cfg.train_cfg.max_epochs, read_data(cfg, 'train_dataloader', images)
    steps = data['images'] and epochs * costs.steps_of(data['images'], cfg.train_dataloader)
    strategy = build_strategy(cfg.train_cfg.get('strategy'))
    drawn = strategy.draw(space, np.random.default_rng(0))
    if cfg.model.get('keep_parent'):
        drawn = [subnet for subnet in drawn if not model.backbone.is_whole(subnet)]
    counts = dict(subnets=len(drawn) or 1, teachers=strategy.teachers)
    return dict(epochs=epochs, **data, steps=steps, **counts)


def measure(cfg: Config, space: SearchSpace, model: SupernetClassifier, args) -> dict:
    """Seconds per step, merge and forward of a few subnets, by name, and a step's memory."""
    subnets = costs.chosen_subnets(space, args.subnets, args.seed)
    loaders = ('train_dataloader', 'heldout_dataloader', 'val_dataloader')
    loader = next(filter(None, map(cfg.get, loaders)), {})
    size = positive(loader.get('batch_size'), 'batch_size of the dataloader', int)
    batch, trains = batch_of(model.image_spec, size, args.device), bool(cfg.get('train_cfg'))
    flops = {name: count_flops(s, **model.image_spec) for name, s in subnets.items()}
    found = dict(batch_size=size, flops=flops)
    with Progress(transient=True) as progress:
        runs = (1 + trains) * len(subnets) * (args.rounds + 1)
        task = progress.add_task(f'Timing batches of {size}', total=runs)

        def tell() -> None:
            progress.advance(task)

        if trains:
            found['memory'] = timing.step_memory(model, space.largest(), batch, args.amp)
            found['step'] = timing.time_steps(model, subnets, batch, args.rounds, args.amp, tell)
        found |= timing.time_evaluations(model, subnets, batch[0], args.rounds, tell)
    return found


def estimate(cfg: Config, found: dict, timed: dict) -> dict:
    """Seconds of the whole training and of a search, if the number of images is known."""

    def expected(what: str) -> float:
        medians = {name: median(each) for name, each in timed[what].items()}
        return costs.expected_seconds(medians, timed['flops'], found['flops']['mean'])

    result, images = {}, found['search']['images']
    if images:
        candidate = expected('merge') + expected('forward') * images / timed['batch_size']
        result['search_seconds'] = found['search']['candidates'] * candidate
    train = found.get('training')
    if train and train['images']:
        teacher = median(timed['forward']['largest'])
        seconds = train['subnets'] * expected('step') + train['teachers'] * teacher
        step = costs.step_with_reading(seconds, train['reading'], cfg.train_dataloader)
        result['training_seconds'] = train['steps'] * step
    return result


def examine(cfg: Config, args) -> dict:
    """All figures, as written to JSON."""
    space = space_of(cfg, args.config)
    model = build_model(cfg, space, args)
    held_out = 'heldout_dataloader' if 'heldout_dataloader' in cfg else 'val_dataloader'
    held_out = read_data(cfg, held_out, args.images)['images']
    found = costs.count_space(space, model.image_spec, args.draws, args.seed)
    found['weights'], found['experts'] = costs.count_weights(model), costs.count_experts(model)
    candidates = costs.candidates_of(cfg.get('val_cfg') or {}, space)
    found['search'] = dict(candidates=candidates, images=held_out)
    found['hints'] = costs.find_hints(found)
    if cfg.get('train_cfg'):
        found['training'] = train = training_of(cfg, space, model, args.images)
        if 'mean' in train:  # the images could be read
            preprocessor = cfg.get('data_preprocessor') or {}
            found['hints'] += costs.pixel_hint(train['mean'], train['std'], preprocessor)
    if model.head is None:
        found['hints'].append('a model without a head is counted, not timed')
    if args.no_timing or model.head is None:
        return found
    try:
        timed = measure(cfg, space, model, args)
    except torch.OutOfMemoryError:
        raise UserError(
            'a step of the largest subnet does not fit in memory; lower '
            'train_dataloader.batch_size, or set model.backbone.with_cp=True'
        ) from None
    return found | dict(timed=timed) | estimate(cfg, found, timed)


def main():
    """Parse, count, measure, print and write."""
    args = parse_args()
    cfg = apis.load_config(args.config, args.cfg_options)
    found, console = examine(cfg, args), cli.SafeConsole()
    console.print(report.sizes(found))
    if 'timed' in found:
        console.print(report.times(found['timed']))
    for line in report.sentences(found):
        cli.say(line)
    if args.json:
        where = dict(config=args.config, device=args.device, threads=torch.get_num_threads())
        write_atomic(args.json, json.dumps(where | found, indent=2) + '\n')


if __name__ == '__main__':
    cli.run(main)
