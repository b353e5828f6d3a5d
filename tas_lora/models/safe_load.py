"""Read untrusted checkpoints: no code in them is run, and damage is reported.

Only tensors, numbers, and the log buffers of MMEngine are unpickled (``weights_only``).
"""

import argparse
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path, PurePosixPath
from pickle import UnpicklingError
from shutil import copyfileobj
from urllib.parse import urlparse
from urllib.request import urlopen
from uuid import uuid4

import numpy as np
import torch
from mmengine.dist import barrier, is_main_process
from mmengine.logging import HistoryBuffer
from safetensors.torch import load_file
from torch import Tensor

from ..atomic_files import UNFINISHED, check_seal
from ..errors import UserError, blame

_PATIENCE = 60.0  # seconds that a server may be silent


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read weights from a checkpoint of ours, an export, or a file of another library.

    Names stay as stored, but for :func:`unwrapped`.

    Args:
        path: A file, or the http(s) address of one.

    Raises:
        UserError: If the file is missing, is not a checkpoint, or holds other objects.
    """
    return weights_in(read_checkpoint(path), path)


def weights_in(checkpoint: object, path: str | Path) -> dict[str, Tensor]:
    """The weights of a checkpoint that was read from ``path``, as :func:`read_state_dict`."""
    for key in ('state_dict', 'model'):
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
    if not isinstance(checkpoint, Mapping) or not _all_tensors(checkpoint):
        raise UserError(f'{path} holds no weights: expected a state dict of tensors')
    return unwrapped(checkpoint)


def unwrapped(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without the prefixes of DDP and ``torch.compile``, where all names have them."""
    for prefix in ('module.', '_orig_mod.') * 2:  # one may wrap the other
        if state_dict and all(str(name).startswith(prefix) for name in state_dict):
            state_dict = {name.removeprefix(prefix): v for name, v in state_dict.items()}
    return dict(state_dict)


def read_checkpoint(path: str | Path) -> object:
    """Read a full checkpoint to the CPU. Arguments and errors as in :func:`read_state_dict`."""
    address, path = str(path), _local(path)
    if not path.is_file():
        what = 'is not a file' if path.exists() else 'does not exist'
        raise UserError(f'checkpoint {path} {what}; check the path')
    # The name of the cached file would not tell whose it is.
    what = f'{address}, downloaded to {path},' if '://' in address else str(path)
    advice = '; delete the file to download it again' if '://' in address else ''
    try:
        check_seal(path)
        if path.suffix == '.safetensors':
            return load_file(path)
        checkpoint = _load(path)
        _check_tensors(checkpoint)
    except UserError as error:
        raise UserError(f'{error}{advice}') from error
    except Exception as error:  # arbitrary bytes make the unpickler raise nearly anything
        reason = f'{_reason(error)}{advice}'
        raise UserError(f'{what} is not a readable checkpoint: {reason}') from error
    return checkpoint


def read_progress(path: str | Path) -> tuple[dict, dict]:
    """Read how far a training checkpoint is, without its tensors and its digest.

    Returns:
        Its ``meta`` and the ``runtime_info`` of its message hub; empty dicts where it has none.

    Raises:
        UserError: If it is not a readable checkpoint.
    """
    try:
        checkpoint = _load(path, mmap=True)
    except Exception as error:  # as in read_checkpoint
        raise UserError(f'{path} is not a readable checkpoint: {_reason(error)}') from error
    found = checkpoint if isinstance(checkpoint, Mapping) else {}
    hub = found.get('message_hub')
    parts = found.get('meta'), hub.get('runtime_info') if isinstance(hub, Mapping) else None
    meta, info = (dict(part) if isinstance(part, Mapping) else {} for part in parts)
    return meta, info


def _load(path: str | Path, mmap: bool = False):
    _check_archive(Path(path))
    allowed = [*resume_globals(), argparse.Namespace]  # Namespace: arguments of AutoFormer
    with torch.serialization.safe_globals(allowed):
        return torch.load(str(path), map_location='cpu', weights_only=True, mmap=mmap)


def resume_globals() -> list[type | tuple[Callable, str]]:
    """Types in MMEngine's checkpoints other than tensors, for ``torch.serialization``.

    MMEngine pickles the methods of ``HistoryBuffer`` through ``getattr``. The real one would let
    a crafted file run anything, so a function that allows four methods takes its place.
    """
    dtypes = {type(np.dtype(code)) for code in ('f8', 'f4', 'i8', 'i4', 'u4', '?')}
    # NumPy functions that pickle refers to, wherever this version has them.
    reconstruct = np.empty(0).__reduce__()[0]
    scalar = np.float64(0).__reduce__()[0]
    return [
        HistoryBuffer,
        np.ndarray,
        np.dtype,
        *dtypes,
        reconstruct,
        scalar,
        (_history_buffer_method, 'builtins.getattr'),
    ]


def _history_buffer_method(owner: type, name: str) -> Callable:
    if owner is not HistoryBuffer or name not in ('min', 'max', 'mean', 'current'):
        raise UnpicklingError(f'getattr({owner!r}, {name!r}) is not allowed in a checkpoint')
    return getattr(HistoryBuffer, name)


def _local(path: str | Path) -> Path:
    """Return a local file, downloaded if ``path`` is an address; MMEngine would unpickle it."""
    address = urlparse(str(path))
    if '://' not in str(path):
        return Path(path)
    if address.scheme not in ('http', 'https'):
        raise UserError(f'{path} is neither a file nor an http(s) address; download it first')
    name = f'{sha256(str(path).encode()).hexdigest()[:12]}-{Path(address.path).name}'
    file = Path(torch.hub.get_dir()) / 'checkpoints' / name
    for may_download in (is_main_process(), True):  # the main process, then other machines
        if may_download and not file.is_file():
            with blame(f'{path} cannot be downloaded'):
                file.parent.mkdir(parents=True, exist_ok=True)
                _download(str(path), file)
        barrier()
    return file


def _download(address: str, file: Path) -> None:
    """Download to a side file, which is renamed once it is complete."""
    unfinished = file.with_name(f'.{file.name}.{uuid4().hex}{UNFINISHED}')
    try:
        with unfinished.open('xb') as content:
            with urlopen(address, timeout=_PATIENCE) as answer:
                copyfileobj(answer, content, 2**20)
            expected = answer.headers.get('Content-Length')
            if expected is not None and int(expected) != content.tell():
                raise ConnectionError(f'cut after {content.tell():,} of {int(expected):,} bytes')
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


def _check_archive(path: Path) -> None:
    """Refuse an archive that would unpack to more than its size, or outside of itself."""
    if not zipfile.is_zipfile(path):
        return  # from torch before 1.6, or not a checkpoint
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
            raise ValueError('it declares more data than the file holds')  # torch never compresses
        for name in map(PurePosixPath, archive.namelist()):
            if name.is_absolute() or '..' in name.parts:
                raise ValueError(f'it has an entry outside of itself, {name}')


def _check_tensors(checkpoint) -> None:
    """Refuse tensors that are not dense ones on the CPU, or larger than their data."""
    for tensor in _tensors(checkpoint):
        is_plain = tensor.layout is torch.strided and tensor.device.type == 'cpu'
        if not is_plain or tensor.nbytes > tensor.untyped_storage().nbytes():
            raise ValueError('it declares a tensor that is larger than the data it holds')


def _tensors(value) -> Iterator[Tensor]:
    """Yield all tensors in nested containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _reason(error: Exception) -> str:
    """Why a file cannot be read, without torch's advice to trust it."""
    forbidden = re.search(r'GLOBAL (\S+)', str(error))
    if forbidden:
        return f'it holds {forbidden.group(1)}, which is not a weight; such files can run code'
    if 'weights_only' in str(error):
        return 'it holds more than weights; such files can run code'
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _all_tensors(mapping: Mapping) -> bool:
    return bool(mapping) and all(isinstance(v, Tensor) for v in mapping.values())
