"""What results are known by: digests of files, versions of packages, and JSON files read back."""

import hashlib
import json
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from reprlib import repr as short

from .errors import UserError

_PACKAGES = ('tas-lora', 'torch', 'mmengine', 'mmpretrain', 'numpy', 'pymoo', 'scikit-learn')


def read_json(path: str | Path, what: str = '', advice: str = '', kind: type = object):
    """What a JSON file holds.

    Args:
        path: The file.
        what: What messages call it, such as 'subnet file'; the path follows.
        advice: Ends the messages.
        kind: Of the value, such as dict.

    Raises:
        UserError: If the file cannot be read, is not JSON, or holds something else.
    """
    name = f'{what} {path}'.strip()
    try:
        value = json.loads(Path(path).read_text('utf-8'))
    except OSError as error:
        raise UserError(f'{name} cannot be read: {error.strerror}{advice}') from error
    except (ValueError, RecursionError) as error:
        raise UserError(f'{name} is not JSON: {error}{advice}') from error
    if not isinstance(value, kind):
        raise UserError(f'{name} must hold a {kind.__name__}, got {short(value)}{advice}')
    return value


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
    """SHA-256 of the weights that a result rests on.

    Raises:
        UserError: If they are not a file here.
    """
    if '://' in path or not Path(path).is_file():
        raise UserError(
            f'checkpoint {path} is not a file; results are kept with the SHA-256 of their '
            'weights: download it first'
        )
    return sha256(path)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    return {name: _version(name) for name in _PACKAGES} | dict(python=platform.python_version())


def _version(package: str) -> str:
    for name in (package, f'onedl-{package}'):  # the fork of mmengine and mmpretrain
        with suppress(PackageNotFoundError):
            return version(name)
    return 'not installed'  # on the path without an installation
