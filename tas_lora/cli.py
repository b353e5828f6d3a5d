"""Common parts of the command-line tools."""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from mmengine.config import Config
from rich.console import Console
from rich.segment import Segment
from rich.table import Table

from . import stopping
from .cfg_options import Options, read_value
from .config import load_config
from .errors import STOPPED, UserError, printable, system_reason
from .ranks import is_first_rank, note_launcher

# OSError: a path that cannot be read or written. DistNetworkError: processes that do not meet.
_USER_MISTAKES = (UserError, OSError, torch.distributed.DistNetworkError)


def run(main: Callable[[], None]) -> None:
    """Run a tool; report a user's mistake in one line, with exit code 2.

    SIGTERM and SIGINT, where the work does not handle them, end it with a line and exit code 75.
    """
    stopping.end_with_launcher()
    try:
        with _interruptible():
            main()
    except SystemExit as stop:
        _leave_group(stop.code)
        raise
    except KeyboardInterrupt:
        if os.environ.get('TAS_LORA_DEBUG'):
            raise
        stopping.say_stopped()
        _leave_group(STOPPED)
        sys.exit(STOPPED)
    except _USER_MISTAKES as error:
        if os.environ.get('TAS_LORA_DEBUG'):
            raise
        if is_first_rank():
            say(f'error: {_in_one_line(error)}', file=sys.stderr)
        sys.exit(2)
    _leave_group(0)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Have SIGTERM and SIGINT raise KeyboardInterrupt, so that what is open is closed."""
    before = stopping.catch_signals(signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            is_ours = handler is stopping.leave  # the work is done
            signal.signal(number, signal.SIG_DFL if is_ours else handler)


def _in_one_line(error: Exception) -> str:
    text = str(error)
    if isinstance(error, torch.distributed.DistNetworkError):
        text = f'the processes of this run cannot meet: {text.splitlines()[0]}; is the port free?'
    elif isinstance(error, OSError) and not isinstance(error, UserError):
        named = f'{error.filename}: ' if error.filename else ''
        text = f'{named}{system_reason(error)}'
    return ' '.join(text.split())


def say(*values, **options) -> None:
    """Print; texts from files cannot steer the terminal. Arguments are those of ``print``."""
    print(*(printable(str(value)) for value in values), **options)


class SafeConsole(Console):
    """Rich's console; texts from files cannot steer the terminal."""

    def render(self, renderable, options=None):
        """Render as rich does, with what is not printable escaped."""
        for part in super().render(renderable, options):
            yield part if part.control else Segment(printable(part.text), part.style)


def _leave_group(code) -> None:
    """End a process of a distributed run on CPUs, without Python's clean-up.

    A gloo thread that frees a tensor during clean-up would abort the process.
    """
    if torch.distributed.is_initialized() and torch.distributed.get_backend() == 'gloo':
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0 if code is None else code if isinstance(code, int) else 1)


class _Options(argparse.Action):
    """MMEngine's action, which also keeps values as they were typed; their fields decide."""

    def __call__(self, parser, namespace, values, option_string=None):
        options = Options(namespace.cfg_options, namespace.cfg_options.texts)
        for pair in values:
            key, is_assigned, text = pair.partition('=')
            if not is_assigned:
                parser.error(f'{option_string} takes key=value, got {" ".join(values)}')
            options[key], options.texts[key] = read_value(text), text
        namespace.cfg_options = options


def markdown(tables: Iterable[Table]) -> str:
    """Tables of rich as Markdown."""
    sections = []
    for table in tables:
        headers = [column.header for column in table.columns]
        rows = zip(*(column.cells for column in table.columns), strict=True)
        lines = [headers, ['---'] * len(headers), *rows]
        text = '\n'.join(f'| {" | ".join(map(str, line))} |' for line in lines)
        sections.append(f'### {table.title}\n\n{text}\n')
    return '\n'.join(sections)


def config_parser(
    description: str, work_dir: bool = True, config: str | None = None
) -> argparse.ArgumentParser:
    """A parser with the common arguments of tools that read a config, as in MMPretrain.

    Args:
        description: Description of the tool.
        work_dir: Whether the tool writes to a work directory.
        config: ``nargs`` of the config; '?' if it is optional.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', nargs=config, help='config file, or name of a packaged config')
    if work_dir:
        parser.add_argument('--work-dir', help='folder for logs and results')
    add_cfg_options(parser)
    return parser


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add the option that overrides config fields."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=_Options,
        default=Options(),
        help='override config fields: key=value, nested keys with dots, lists as "[a,b]"; quotes '
        'mean text',
    )


def add_launcher(parser: argparse.ArgumentParser) -> None:
    """Add the options for distributed runs."""
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def check_output(path: str) -> None:
    """Refuse an output file that cannot be written, before the work starts."""
    if Path(path).is_dir() or not Path(path).absolute().parent.is_dir():
        raise UserError(f'{path} cannot be written: it must be a file in an existing folder')


def config_from(args: argparse.Namespace) -> Config:
    """The config of a parsed command line, with work directory and launcher set."""
    note_launcher(getattr(args, 'launcher', None))
    for option, argument in (('launcher', 'launcher'), ('load_from', 'checkpoint')):
        if option in args.cfg_options and hasattr(args, argument):
            raise UserError(f'--cfg-options {option}: it would be ignored; give the {argument}')
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
