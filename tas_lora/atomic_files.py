"""Atomic writing of files, and digests that reveal damage."""

import hashlib
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import UserError, WriteError, system_reason
from .provenance import sha256

UNFINISHED = '.tmp'  # ends the name of a file that is being written
_PREFIX = b'sha256:'
_SEAL = len(_PREFIX) + 64  # bytes; ASCII
_ZIP_END = b'PK\x05\x06'  # of a zip file's last record, which is 22 bytes without a comment


def write_atomic(path: str | Path, content: str | bytes) -> None:
    """Write a temporary file next to ``path``, sync it to disk, and rename it.

    Whatever happens, ``path`` is the complete old file or the complete new one.

    Raises:
        WriteError: If the file cannot be written, as on a full disk; ``path`` is then unchanged.
    """
    write_together({Path(path): content})


def write_together(contents: Mapping[Path, str | bytes]) -> None:
    """:func:`write_atomic` for related files of one folder, all renamed at the end."""
    unfinished = {path: path.with_name(f'.{path.name}{UNFINISHED}') for path in contents}
    with _named(*contents):
        try:
            for path, content in contents.items():
                unfinished[path].unlink(missing_ok=True)  # a stranger's link is not followed
                with unfinished[path].open('xb') as file:
                    file.write(content.encode() if isinstance(content, str) else content)
                    file.flush()
                    os.fsync(file.fileno())
            for path in contents:
                unfinished[path].replace(path)
        except BaseException:
            for path in contents:
                with suppress(OSError):  # the first error says more
                    unfinished[path].unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # so that the renames survive a power failure
        finally:
            os.close(folder)


@contextmanager
def _named(*paths: str | Path) -> Iterator[None]:
    """Turn the system's error into one that names what was to be written, and the reason."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        names = ', '.join(map(str, paths))
        raise WriteError(
            f'{names} cannot be written: {system_reason(error, Path(paths[0]))}'
        ) from error


def append_line(path: str | Path, line: str, sync: bool = True) -> None:
    """Append a line and sync it to disk; only the last line can be truncated by a crash.

    Without ``sync`` a power failure may take more, a killed process still nothing. A symbolic link
    is refused: in a folder of a stranger it may lead anywhere.
    """
    with _named(path), open(path, 'a', opener=_open_no_link) as file:
        file.write(line + '\n')
        file.flush()
        if sync:
            os.fsync(file.fileno())


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def seal(archive: bytes) -> bytes:
    """Add its SHA-256 to a zip archive, such as ``torch.save`` writes, as the archive's comment.

    Every reader still accepts it. Other content, or an archive with a comment, is returned
    unchanged.
    """
    if archive[-22:-18] != _ZIP_END or archive[-2:] != b'\0\0':
        return archive
    content = archive[:-2] + _SEAL.to_bytes(2, 'little')
    return content + _PREFIX + hashlib.sha256(content).hexdigest().encode()


def check_seal(path: str | Path) -> None:
    """Compare a sealed file with its digest; a file without a seal passes.

    Raises:
        UserError: If the content does not match the digest.
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
    """Whether a checkpoint is a complete archive that matches its seal, if it has one."""
    try:
        check_seal(path)
    except UserError:
        return False
    return zipfile.is_zipfile(path)


def is_damaged(path: str | Path) -> bool:
    """Whether a file is empty, or begins as an archive but is not whole."""
    with Path(path).open('rb') as file:
        return file.read(4) in (b'PK\x03\x04', b'') and not is_whole(path)
