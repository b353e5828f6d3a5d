"""What all command-line tools share."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.config.utils import ConfigParsingError

from .apis import load_config
from .errors import UserError

# Besides ours, what MMEngine and Python raise for a mistake in a file that the user named.
_USER_MISTAKES = (UserError, ConfigParsingError, SyntaxError, FileNotFoundError)


def run(main: Callable[[], None]) -> None:
    """Run a tool; a mistake of the user becomes one line and exit code 2."""
    try:
        main()
    except _USER_MISTAKES as error:
        _exit_with(error)
    except KeyError as error:
        if 'is not in the' not in str(error):  # how MMEngine's registries say "unknown type"
            raise
        _exit_with(error)


def config_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the arguments every tool on a config takes, as in MMPretrain's tools."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='folder for logs and results')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override config fields: key=value, nested keys with dots, lists as "[a,b]"',
    )
    return parser


def add_launcher(parser: argparse.ArgumentParser) -> None:
    """Add the options of distributed runs."""
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def config_from(args: argparse.Namespace) -> Config:
    """The config of a parsed command line, with work directory and launcher set."""
    if args.config is not None and 'LOCAL_RANK' not in os.environ and hasattr(args, 'local_rank'):
        os.environ['LOCAL_RANK'] = str(args.local_rank)
    cfg = load_config(args.config, args.cfg_options)
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(args.config).stem)
    if hasattr(args, 'launcher'):
        cfg.launcher = args.launcher
    return cfg


def _exit_with(error: Exception) -> None:
    if os.environ.get('RANK', '0') == '0':
        message = error.args[0] if isinstance(error, KeyError) else error
        print(f'error: {" ".join(str(message).split())}', file=sys.stderr)
    sys.exit(2)
