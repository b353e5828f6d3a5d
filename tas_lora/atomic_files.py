"""Files that are whole or not there: atomic writing, and digests by which damage is told."""

import hashlib
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

from .errors import UserError
from .provenance import sha256

UNFINISHED = '.tmp'  # ends the name of a file that is being written
_PREFIX = b'sha256:'
_SEAL = len(_PREFIX) + 64  # bytes; ASCII
_ZIP_END = b'PK\x05\x06'  # of a zip file's last record, which is 22 bytes without a comment


def write_atomic(path: str | Path, content: str | bytes) -> None:
    """Write a file beside, sync it to disk, and move it to its place.

    Whatever happens meanwhile, ``path`` is the old file or the new one, whole.

    Raises:
        OSError: If it cannot be written, as on a full disk; ``path`` is then as it was.
    """
    write_together({Path(path): content})


def write_together(contents: Mapping[Path, str | bytes]) -> None:
    """:func:`write_atomic` for files of one folder that belong together, moved at the end."""
    beside = {path: path.with_name(f'.{path.name}{UNFINISHED}') for path in contents}
    try:
        for path, content in contents.items():
            with beside[path].open('wb') as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
        for path in contents:
            beside[path].replace(path)
    except BaseException:
        for path in contents:
            beside[path].unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def append_line(path: str | Path, line: str) -> None:
    """Append a line and sync it to disk; only a line that is being written can be torn."""
    with Path(path).open('a') as file:
        file.write(line + '\n')
        file.flush()
        os.fsync(file.fileno())


def seal(archive: bytes) -> bytes:
    """A zip archive, such as ``torch.save`` writes, with its SHA-256 as the archive's comment.

    It stays a zip archive for every reader. Other content, or an archive that has a comment, is
    returned as it is.
    """
    if archive[-22:-18] != _ZIP_END or archive[-2:] != b'\0\0':
        return archive
    content = archive[:-2] + _SEAL.to_bytes(2, 'little')
    return content + _PREFIX + hashlib.sha256(content).hexdigest().encode()


def check_seal(path: str | Path) -> None:
    """Compare a sealed file with its digest; one without a seal passes.

    Raises:
        UserError: If the file is not what was written.
    """
    path = Path(path)
    size = path.stat().st_size - _SEAL
    if size < 22:
        return
    with path.open('rb') as file:
        file.seek(size)
        sealed = file.read()
    if sealed.startswith(_PREFIX) and sealed != _PREFIX + sha256(path, size).encode():
        raise UserError(f'{path} is damaged: its content does not match its SHA-256')


def is_whole(path: str | Path) -> bool:
    """Whether a checkpoint is a complete archive, with the content that was written."""
    try:
        check_seal(path)
    except UserError:
        return False
    return zipfile.is_zipfile(path)


def is_damaged(path: str | Path) -> bool:
    """Whether a file begins as an archive, or is empty, and is not whole."""
    with Path(path).open('rb') as file:
        return file.read(4) in (b'PK\x03\x04', b'') and not is_whole(path)


def checkpoints_in(folder: str | Path) -> list[Path]:
    """Checkpoints of a training, the last written first; those of best scores do not count.

    First comes the one that the file ``last_checkpoint`` names, which may lie elsewhere. The
    others go by time, which copying a folder may change.
    """
    folder = Path(folder)
    files = [path for path in folder.glob('*.pth') if not path.name.startswith('best_')]
    files.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    note = folder / 'last_checkpoint'
    named = Path(note.read_text().strip() or 'nothing') if note.is_file() else folder
    return [named, *(path for path in files if path != named)] if named.is_file() else files


def newest_whole(folder: str | Path) -> Path | None:
    """The first of :func:`checkpoints_in` a folder that is whole."""
    return next(filter(is_whole, checkpoints_in(folder)), None)


def _sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
