"""Search for the best subnet within limits (stage 3)."""

import tas_lora.startup  # noqa: F401  # isort: skip  signals, while the rest is imported

from pathlib import Path

from mmengine.config import Config

from tas_lora import UserError, apis, cli, packaged
from tas_lora.config import checked_config
from tas_lora.engine.search import (
    RAY_OPTIONS,
    check_checkpoint,
    check_settings,
    compare_results,
    read_identity,
    recorded_config,
)


def parse_args():
    """Command line."""
    parser = cli.config_parser(__doc__, config='?')
    parser.add_argument(
        'checkpoint', nargs='?', help='checkpoint with trained experts, or a bare supernet'
    )
    add_kind(parser)
    parser.add_argument(
        '--test',
        action='store_true',
        help='at the end, test the chosen subnets once on the test set',
    )
    parser.add_argument('--no-report', action='store_true', help='write neither report nor figures')
    parser.add_argument(
        '--resume', action='store_true', help='resume the search in the work directory'
    )
    parser.add_argument(
        '--replay',
        metavar='RESULT',
        help='repeat the search of this best_subnet.json (or its folder) and compare the results; '
        'CONFIG is needed if it names parts of your own, CHECKPOINT if the file has moved',
    )
    parser.add_argument(
        '--check-only',
        action='store_true',
        help='score one subnet on one batch without writing anything, then exit',
    )
    add_workers(parser)
    args = parser.parse_args()
    if args.replay is None and args.checkpoint is None:
        parser.error('give CONFIG and CHECKPOINT, or --replay RESULT')
    if args.replay is not None and args.checkpoint is None and not _is_config(args.config):
        args.config, args.checkpoint = None, args.config  # the only positional argument
    changes = args.model or args.goals or args.exhaustive or args.baseline
    if args.replay is not None and args.config is None and changes:
        parser.error('--replay repeats a search unchanged; leave out options that change it')
    return args


def _is_config(name: str | None) -> bool:
    """Whether the only argument next to --replay names a config rather than a checkpoint."""
    if name is None or Path(name).suffix in ('.py', '.json', '.yaml', '.yml'):
        return name is not None
    return not Path(name).exists() and name.removeprefix(packaged.PREFIX) in packaged.configs()


def add_kind(parser) -> None:
    """Add the options that select the kind of search."""
    parser.add_argument(
        '--model',
        metavar='CONFIG',
        help='search with the model of this config, e.g. a variant in configs/ablations',
    )
    parser.add_argument(
        '--goals',
        nargs='+',
        metavar='COST',
        help='costs to minimise along with the score, such as params or flops; NSGA-II finds the '
        'Pareto front',
    )
    parser.add_argument(
        '--exhaustive',
        action='store_true',
        help='evaluate each subnet on all images, without a race',
    )
    parser.add_argument(
        '--baseline', action='store_true', help='run a random search as well, for comparison'
    )


def add_workers(parser) -> None:
    """Add the options that say where candidates are evaluated."""
    parser.add_argument(
        '--workers', type=int, help='evaluate candidates in this many processes, on Ray'
    )
    parser.add_argument(
        '--address',
        help="Ray cluster to use, HOST:PORT or 'auto'; without --workers, as many as it has room "
        'for',
    )
    parser.add_argument(
        '--gpus-per-worker',
        type=gpu_share,
        metavar='SHARE',
        help="GPUs of a worker, such as 0.5, or 'auto': as many workers as its memory allows",
    )
    parser.add_argument('--cpus-per-worker', type=float, help='cores, and threads, of a worker')


def gpu_share(text: str) -> float | str:
    """A number, or 'auto'."""
    return text if text == 'auto' else float(text)


def use_workers(cfg: Config, args) -> None:
    """Set ``val_cfg.ray`` as the options say."""
    options = {name: getattr(args, name) for name in RAY_OPTIONS}
    chosen = {name: value for name, value in options.items() if value is not None}
    if chosen:
        cfg.val_cfg.ray = {**(cfg.val_cfg.get('ray') or {}), **chosen}


def searched_config(args) -> Config:
    """Config of a search, changed by the options."""
    cfg = cli.config_from(args)
    loop = (cfg.get('val_cfg') or {}).get('type')
    if not str(getattr(loop, '__name__', loop)).endswith('SearchLoop'):  # a class, or its name
        raise UserError(
            f'{args.config} is not a search config: its val_cfg is not a search loop; '
            'give one such as configs/digits_search.py'
        )
    if args.model is not None:
        options = args.cfg_options.below('model.')
        cfg.model = apis.load_config(args.model, options).model
        cfg.work_dir = args.work_dir or f'work_dirs/{Path(args.model).stem}_search'
    if args.goals:
        cfg.val_cfg.goals = args.goals
    if args.exhaustive:
        cfg.val_cfg.race = None
    if args.baseline:
        cfg.val_cfg.baseline = True
    cfg.val_cfg.resume = args.resume or cfg.val_cfg.get('resume', False)
    return cfg


def replayed_config(args) -> tuple[Config, str]:
    """Config and checkpoint of a recorded search.

    Only a config that the user names can name code; the one in the record is restricted.
    """
    identity = read_identity(args.replay)
    checkpoint = args.checkpoint or identity['checkpoint']
    apis.check_checkpoint_file(checkpoint, 'give the file as CHECKPOINT')
    check_checkpoint(checkpoint, identity)
    if args.config is not None:
        cfg = searched_config(args)
        check_settings(cfg, identity)
    else:
        cfg = checked_config(recorded_config(identity['config'], args.test), args.cfg_options)
        cfg.val_cfg.resume = args.resume or cfg.val_cfg.get('resume', False)
    path = Path(args.replay).resolve()
    folder = path if path.is_dir() else path.parent
    cfg.work_dir = args.work_dir or f'{folder}_replay'
    if (folder / 'measured.jsonl').is_file():
        cfg.val_cfg.measured = str(folder / 'measured.jsonl')
    return cfg, checkpoint


def main():
    """Parse and search."""
    args = parse_args()
    if args.replay is None:
        cfg, checkpoint = searched_config(args), args.checkpoint
    else:
        cfg, checkpoint = replayed_config(args)
    use_workers(cfg, args)
    if args.check_only:
        apis.check_search(cfg, checkpoint, test=args.test)
        return
    apis.search(cfg, checkpoint, test=args.test, report=not args.no_report)
    if args.replay is not None:
        same, text = compare_results(args.replay, cfg.work_dir)
        cli.say(text)
        raise SystemExit(0 if same else 1)


if __name__ == '__main__':
    cli.run(main)
