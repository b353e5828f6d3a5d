"""Provenance of results: digests of files, versions of packages, and reading of JSON files."""

import errno
import hashlib
import json
import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from reprlib import repr as short

from .errors import UserError

_PACKAGES = ('tas-lora', 'torch', 'mmengine', 'mmpretrain', 'numpy', 'pymoo', 'scikit-learn')
_DEEPEST = 50  # levels of a JSON file; those of ours have a dozen


def read_json(
    path: str | Path,
    what: str = '',
    advice: str = '',
    kind: type = object,
    most: int | None = 100,
):
    """Read a JSON file.

    Args:
        path: The file.
        what: Name of the file in messages, before its path, such as 'subnet file'.
        advice: End of the messages.
        kind: Required type of the value, such as dict.
        most: MB that the file may have.

    Raises:
        UserError: If the file cannot be read, is not JSON, or holds something else.
    """
    name = f'{what} {path}'.strip()
    try:
        value = json.loads(read_file(path, most).decode('utf-8'))
        json.dumps(value, ensure_ascii=False).encode('utf-8')  # no half of a surrogate pair
        if _is_deeper(value, _DEEPEST):  # what walks through it would end in a RecursionError
            raise ValueError(f'nested more than {_DEEPEST} deep')
    except OSError as error:
        raise UserError(f'{name} cannot be read: {error.strerror}{advice}') from error
    except (ValueError, RecursionError) as error:
        raise UserError(f'{name} is not JSON: {error}{advice}') from error
    if not isinstance(value, kind):
        raise UserError(f'{name} must hold a {kind.__name__}, got {short(value)}{advice}')
    return value


def _is_deeper(value, most: int) -> bool:
    """Whether dicts and lists are nested more than ``most`` deep; without recursion."""
    level = [value]
    for _ in range(most + 1):
        nodes = [x.values() if isinstance(x, dict) else x for x in level if type(x) in (dict, list)]
        level = [item for node in nodes for item in node]
    return bool(level)


def read_file(path: str | Path, most: int | None = None) -> bytes:
    """Read a regular file, of at most ``most`` MB; a pipe or a device may never end.

    Raises:
        OSError: If it is not a file, or cannot be read.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, 'it is a pipe or a device, not a file', str(path))
    size = path.stat().st_size
    if most is not None and size > most * 10**6:
        raise OSError(errno.EFBIG, f'it has more than {most} MB', str(path))
    if size > os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'):
        raise OSError(errno.ENOMEM, 'it does not fit in memory', str(path))
    return path.read_bytes()


def sha256(path: str | Path, size: int | None = None) -> str:
    """SHA-256 of a file, or of its first ``size`` bytes, in hexadecimal digits."""
    path, digest = Path(path), hashlib.sha256()
    left = path.stat().st_size if size is None else size
    with path.open('rb') as file:
        while block := file.read(min(left, 2**20)):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


def weights_sha256(path: str) -> str:
    """SHA-256 of the weights that a result depends on.

    Raises:
        UserError: If they are not a local file.
    """
    if '://' in path or not Path(path).is_file():
        raise UserError(
            f'checkpoint {path} is not a file; results record the SHA-256 of their weights: '
            'download it first'
        )
    return sha256(path)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    return {name: _version(name) for name in _PACKAGES} | dict(python=platform.python_version())


def _version(package: str) -> str:
    for name in (package, f'onedl-{package}'):  # the maintained fork of mmengine and mmpretrain
        with suppress(PackageNotFoundError):
            return version(name)
    return 'not installed'  # importable without an installation
