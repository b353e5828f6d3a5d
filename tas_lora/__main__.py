"""``tas-lora COMMAND ...`` runs the tool of that name, like ``python tools/COMMAND.py ...``."""

import ast
import os
import sys
from pathlib import Path
from types import ModuleType

from . import __version__, packaged, startup  # noqa: F401  startup handles signals
from .errors import UserError, printable


def main() -> None:
    """Run a tool, or list tools or configs; report a mistake in one line, with exit code 2."""
    name, *arguments = sys.argv[1:] or ['--help']
    if name in ('-h', '--help'):
        print(printable(_help()))
    elif name == '--version':
        print(printable(f'tas-lora {__version__}'))
    elif name == 'configs':
        print(printable('\n'.join(_listed(packaged.configs()))))
    else:
        try:
            path = packaged.find_tool(name)
        except UserError as error:
            print(printable(f'error: {error}'), file=sys.stderr)
            sys.exit(2)
        _run(path, arguments)


def _run(path: Path, arguments: list[str]) -> None:
    name = f'tas-lora {path.stem}'
    if path.suffix == '.sh':
        os.environ['TAS_LORA_COMMAND'] = name
        os.environ.setdefault('PYTHON', sys.executable)
        os.execvp('bash', ['bash', str(path), *arguments])
    sys.argv = [name, *arguments]  # argparse reads the program name from it
    sys.path.insert(0, str(path.parent))  # as Python does for a script
    script = sys.modules['__main__'] = ModuleType('__main__')  # runpy would restore the old name
    script.__file__ = str(path)
    exec(compile(path.read_bytes(), str(path), 'exec'), vars(script))


def _help() -> str:
    lines = '\n'.join(f'  {line}' for line in _listed(packaged.tools()))
    return (
        'usage: tas-lora COMMAND [options]\n\n'
        'Vision-transformer architecture search with mixture-of-LoRA experts.\n\n'
        f'commands:\n{lines}\n'
        '  configs                      List the packaged configs.\n\n'
        'CONFIG is a file, or the name of a packaged config: tas-lora train digits_supernet\n'
        '`tas-lora COMMAND --help` lists the options of a command.'
    )


def _listed(paths: dict[str, Path]) -> list[str]:
    width = max(map(len, paths), default=0) + 2
    return [f'{name:<{width}}{_summary(path)}' for name, path in paths.items()]


def _summary(path: Path) -> str:
    """First line of a script's docstring, or of the comment at its top."""
    text = path.read_text('utf-8')
    if path.suffix == '.sh':
        return text.splitlines()[1].removeprefix('# ')
    return (ast.get_docstring(ast.parse(text)) or '').partition('\n')[0]


if __name__ == '__main__':
    main()
