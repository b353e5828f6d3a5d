"""The exception for mistakes of the user rather than of the program."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STOPPED = 75  # EX_TEMPFAIL: exit code of a training that a signal stopped; it can be resumed
# Controls of a terminal, halves of a surrogate pair, and what reorders or breaks a line.
_UNSEEN = re.compile(
    '[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]'
)


def printable(text: str) -> str:
    r"""Escape what would steer a terminal or change what a line seems to say.

    Texts from files pass through this before they are shown: ESC becomes ``\x1b``. Line feeds and
    tabs stay.
    """
    return _UNSEEN.sub(lambda found: found[0].encode('unicode_escape').decode(), text)


class UserError(ValueError):
    """A mistake in a config, a file or an argument.

    The message is one line: what is wrong, what is expected, what to do. ``cli.run`` prints it
    without a traceback and exits with code 2; TAS_LORA_DEBUG=1 shows the traceback.

    Args:
        message: A sentence, or with ``field`` the rest of one: 'must be ...'.
        field: Name of the wrong argument; empty if the whole part is wrong. The message begins
            with the part it belongs to: a class, or a place in a config.
    """

    def __init__(self, message: str, field: str | None = None):
        super().__init__(message)
        self.message, self.joint = message, ': ' if field is None else ' '
        self.field, self.part = field or '', ''

    def __str__(self) -> str:
        name = '.'.join(filter(None, (self.part, self.field)))
        return printable(f'{name}{self.joint}{self.message}' if name else self.message)


class WriteError(UserError, OSError):
    """A file that cannot be written; the message has the file and the system's reason."""


class NonFiniteError(UserError):
    """A training step was skipped because its loss or a gradient is infinite or NaN."""


@contextmanager
def blame(what: str, field: str | None = None) -> Iterator[None]:
    """Turn any error into a :class:`UserError`, for a step that only reads the user's input.

    Args:
        what: Start of the message: 'the config cannot be read'.
        field: As in :class:`UserError`.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if os.environ.get('TAS_LORA_DEBUG'):
            raise
        reason = ' '.join(str(error).split()) or 'no reason given'
        raise UserError(f'{what}: {type(error).__name__}: {reason[:600]}', field) from error


_ADVICE = {
    errno.ENOSPC: 'make room',
    errno.EDQUOT: 'make room, or have the quota raised',
    errno.EFBIG: 'the system or the file system limits the size of files; raise the limit',
    errno.EIO: 'the disk or its connection fails; see the system log, and copy what is left',
    errno.ESTALE: 'the file server has removed or replaced the folder; mount it again',
    errno.ELOOP: 'it is a symbolic link, which is not followed; remove it, or put the file there',
    errno.EROFS: 'the file system is read-only, by its mount or after a fault; see the system log',
}


def system_reason(error: OSError, path: str | Path | None = None) -> str:
    """What the system says about a file, what that means, and what to do, without the file's name.

    Args:
        error: Of the system.
        path: The file; by default the one that the error names.
    """
    path = path or error.filename
    reason = error.strerror or str(error) or type(error).__name__
    if error.errno == errno.ENOENT and isinstance(path, (str, Path)):
        above = Path(path).absolute().parents
        missing = [folder for folder in above if not folder.exists()]
        if missing:
            return f'there is no folder {missing[-1]}; if there was one, it was moved or removed'
    advice = _ADVICE.get(error.errno)
    return f'{reason} ({advice})' if advice else reason
