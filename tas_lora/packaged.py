"""Location of configs and tools, and their lookup by name.

An installed package contains them in ``.mim``, where MIM and MMEngine look for them; in a
checkout they are next to the package.
"""

import sys
from difflib import get_close_matches
from pathlib import Path

from .errors import UserError

_PACKAGE = Path(__file__).resolve().parent
ROOT = _PACKAGE / '.mim' if (_PACKAGE / '.mim').is_dir() else _PACKAGE.parent
CONFIGS = ROOT / 'configs'
TOOLS = ROOT / 'tools'
PREFIX = 'tas_lora::'  # MMEngine's notation for a config of a package


def configs() -> dict[str, Path]:
    """Runnable packaged configs by name: ``digits_moLE``, ``ablations/t_joint``."""
    return {
        path.relative_to(CONFIGS).with_suffix('').as_posix(): path
        for path in sorted(CONFIGS.rglob('*.py'))
        if '_base_' not in path.parts
    }


def tools() -> dict[str, Path]:
    """Packaged tools by name: ``train``, ``dist_train``, ``analysis/ranking``."""
    return {
        path.relative_to(TOOLS).with_suffix('').as_posix(): path
        for path in sorted(TOOLS.rglob('*'))
        if path.suffix in ('.py', '.sh')
    }


def find_config(name: str | Path) -> Path:
    """Find a config by path, or else a packaged one by name.

    Args:
        name: A file; or a packaged config as ``ablations/t_joint``, ``t_joint``,
            ``configs/ablations/t_joint.py`` or ``tas_lora::ablations/t_joint.py``.

    Raises:
        UserError: If there is none; the message has the nearest names.
    """
    if Path(name).is_file():
        return Path(name)
    asked = str(name).removeprefix(PREFIX).removeprefix('configs/')
    inside = CONFIGS / asked
    if inside.is_file():  # including parts of configs, such as _base_/models/digits.py
        return inside
    found = _find(asked.removesuffix('.py'), configs())
    if found is not None:
        return found
    what = 'is not a file' if Path(name).exists() else 'does not exist'
    nearest = _nearest(asked.removesuffix('.py'), configs())
    raise UserError(f'config {name} {what}; {nearest}`tas-lora configs` lists the packaged ones')


def find_tool(name: str) -> Path:
    """Find a tool by name: ``train``, ``ranking``, ``analysis/ranking``, ``tools/train.py``.

    Raises:
        UserError: If there is none; the message has the nearest names.
    """
    asked = name.rpartition('tools/')[2].removesuffix('.py').removesuffix('.sh').replace('-', '_')
    found = _find(asked, tools())
    if found is None:
        nearest = _nearest(asked, tools())
        raise UserError(f'there is no command {name!r}; {nearest}`tas-lora --help` lists all')
    return found


def command() -> list[str]:
    """The command line of this process, split into words."""
    first, *rest = sys.argv
    return [*(first.split() if first.startswith('tas-lora ') else [first]), *rest]


def _find(name: str, paths: dict[str, Path]) -> Path | None:
    """The path for a name, which may omit its folders."""
    short = [path for full, path in paths.items() if full.rpartition('/')[2] == name]
    return paths.get(name) or (short[0] if len(short) == 1 else None)


def _nearest(name: str, paths: dict[str, Path]) -> str:
    """Part of a message: the names closest to a mistyped one."""
    shorts = {full.rpartition('/')[2].lower(): full for full in paths}
    close = get_close_matches(Path(name).name.lower(), shorts, n=3)
    return f'nearest: {", ".join(shorts[each] for each in close)}; ' if close else ''
