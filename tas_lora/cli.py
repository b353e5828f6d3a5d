"""What all command-line tools share."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from rich.table import Table

from .config import load_config
from .errors import UserError

_USER_MISTAKES = (UserError, OSError)  # OSError: a path that cannot be read or written


def run(main: Callable[[], None]) -> None:
    """Run a tool; a mistake of the user becomes one line and exit code 2."""
    try:
        main()
    except SystemExit as stop:
        _leave_group(stop.code)
        raise
    except _USER_MISTAKES as error:
        if os.environ.get('TAS_LORA_DEBUG'):
            raise
        _exit_with(error)
    _leave_group(0)


def _leave_group(code) -> None:
    """End a process of a distributed run on CPUs, without the steps Python takes at its end.

    A thread of gloo that frees a tensor during these would abort the process.
    """
    if torch.distributed.is_initialized() and torch.distributed.get_backend() == 'gloo':
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0 if code is None else code if isinstance(code, int) else 1)


class _Options(DictAction):
    """MMEngine's action, which meets an option without '=' with a traceback."""

    def __call__(self, parser, namespace, values, option_string=None):
        try:
            super().__call__(parser, namespace, values, option_string)
        except ValueError:
            parser.error(f'{option_string} takes key=value, got {" ".join(values)}')


def markdown(tables: Iterable[Table]) -> str:
    """Tables of rich as Markdown."""
    return '\n'.join(map(_markdown, tables))


def _markdown(table: Table) -> str:
    rows = zip(*(column.cells for column in table.columns), strict=True)
    lines = [[str(column.header) for column in table.columns], ['---'] * len(table.columns), *rows]
    text = '\n'.join(f'| {" | ".join(map(str, line))} |' for line in lines)
    return f'### {table.title}\n\n{text}\n'


def config_parser(
    description: str, work_dir: bool = True, config: str | None = None
) -> argparse.ArgumentParser:
    """A parser with the arguments every tool on a config takes, as in MMPretrain's tools.

    Args:
        description: Of the tool.
        work_dir: Whether it writes to one.
        config: ``nargs`` of the config; '?' where it may be left out.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', nargs=config, help='config file, or name of a packaged config')
    if work_dir:
        parser.add_argument('--work-dir', help='folder for logs and results')
    add_cfg_options(parser)
    return parser


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add the option that overrides fields of a config."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=_Options,
        help='override config fields: key=value, nested keys with dots, lists as "[a,b]"',
    )


def add_launcher(parser: argparse.ArgumentParser) -> None:
    """Add the options of distributed runs."""
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def check_output(path: str) -> None:
    """Refuse a file that cannot be written, before the work that it is to hold."""
    if Path(path).is_dir() or not Path(path).absolute().parent.is_dir():
        raise UserError(f'{path} cannot be written: it must be a file in an existing folder')


def config_from(args: argparse.Namespace) -> Config:
    """The config of a parsed command line, with work directory and launcher set."""
    if 'LOCAL_RANK' not in os.environ and hasattr(args, 'local_rank'):
        os.environ['LOCAL_RANK'] = str(args.local_rank)
    cfg = load_config(args.config, args.cfg_options)
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(cfg.filename).stem)
    if hasattr(args, 'launcher'):
        cfg.launcher = args.launcher
    return cfg


def _exit_with(error: Exception) -> None:
    if os.environ.get('RANK', '0') == '0':
        print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
    sys.exit(2)
