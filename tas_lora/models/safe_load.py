"""Reading checkpoints of strangers: nothing in them is run, and damage is named.

Only tensors, numbers, and the log buffers of MMEngine are unpickled (``weights_only``).
"""

import argparse
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path, PurePosixPath
from pickle import UnpicklingError
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.dist import barrier, is_main_process
from mmengine.logging import HistoryBuffer
from safetensors.torch import load_file
from torch import Tensor

from ..atomic_files import check_seal
from ..errors import UserError, blame


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Weights of a checkpoint of ours, an export, or an official AutoFormer file, names as stored.

    Args:
        path: A file, or the http(s) address of one.

    Raises:
        UserError: If there is no such file, or it is no checkpoint, or it holds other objects.
    """
    checkpoint = read_checkpoint(path)
    for key in ('state_dict', 'model'):
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
    if not isinstance(checkpoint, Mapping) or not _all_tensors(checkpoint):
        raise UserError(f'{path} holds no weights: expected a state dict of tensors')
    return dict(checkpoint)


def read_checkpoint(path: str | Path) -> object:
    """All that a checkpoint holds, on the CPU. Arguments and errors: :func:`read_state_dict`."""
    path = _local(path)
    if not path.is_file():
        raise UserError(f'checkpoint {path} does not exist; check the path')
    check_seal(path)
    try:
        if path.suffix == '.safetensors':
            return load_file(path)
        _check_archive(path)
        allowed = [*resume_globals(), argparse.Namespace]  # Namespace: AutoFormer's own arguments
        with torch.serialization.safe_globals(allowed):
            checkpoint = torch.load(path, map_location='cpu', weights_only=True)
        _check_tensors(checkpoint)
    except Exception as error:  # arbitrary bytes make the unpickler raise nearly anything
        raise UserError(f'{path} is no readable checkpoint: {_reason(error)}') from error
    return checkpoint


def resume_globals() -> list[type | tuple[Callable, str]]:
    """What MMEngine's checkpoints hold besides tensors, for ``torch.serialization``.

    MMEngine pickles the methods of ``HistoryBuffer`` through ``getattr``. The real one would let
    a crafted file run anything, so the name is given to a function that knows four methods.
    """
    dtypes = {type(np.dtype(code)) for code in ('f8', 'f4', 'i8', 'i4', 'u4', '?')}
    # Functions of NumPy as pickle names them, wherever this version keeps them.
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
    """A file, downloaded if ``path`` is an address; MMEngine would unpickle what it downloads."""
    address = urlparse(str(path))
    if '://' not in str(path):
        return Path(path)
    if address.scheme not in ('http', 'https'):
        raise UserError(f'{path} is no file and no http(s) address; download it first')
    name = f'{sha256(str(path).encode()).hexdigest()[:12]}-{Path(address.path).name}'
    file = Path(torch.hub.get_dir()) / 'checkpoints' / name
    for may_download in (is_main_process(), True):  # the first process, then other machines
        if may_download and not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            with blame(f'{path} cannot be downloaded'):
                torch.hub.download_url_to_file(str(path), str(file))
        barrier()
    return file


def _check_archive(path: Path) -> None:
    """Refuse an archive that would unpack to more than it is, or elsewhere than in itself."""
    if not zipfile.is_zipfile(path):
        return  # of torch before 1.6, or no checkpoint
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
            raise ValueError('it declares more data than the file holds')  # torch compresses none
        for name in map(PurePosixPath, archive.namelist()):
            if name.is_absolute() or '..' in name.parts:
                raise ValueError(f'it has an entry outside of itself, {name}')


def _check_tensors(checkpoint) -> None:
    """Refuse tensors that are no plain ones, or larger than the data they come with."""
    for tensor in _tensors(checkpoint):
        is_plain = tensor.layout is torch.strided and tensor.device.type == 'cpu'
        if not is_plain or tensor.nbytes > tensor.untyped_storage().nbytes():
            raise ValueError('it declares a tensor that is larger than the data it holds')


def _tensors(value) -> Iterator[Tensor]:
    """All tensors in nested containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _reason(error: Exception) -> str:
    """Why a file could not be read, without torch's advice to trust it."""
    forbidden = re.search(r'GLOBAL (\S+)', str(error))
    if forbidden:
        return f'it holds {forbidden.group(1)}, which is no weight; such files can run code'
    if 'weights_only' in str(error):
        return 'it holds more than weights; such files can run code'
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _all_tensors(mapping: Mapping) -> bool:
    return bool(mapping) and all(isinstance(v, Tensor) for v in mapping.values())
