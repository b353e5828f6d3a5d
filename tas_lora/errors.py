"""The one exception raised for mistakes of the person who calls, not of the program."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

STOPPED = 75  # exit code of a training that a signal stopped and that can be resumed: EX_TEMPFAIL


class UserError(ValueError):
    """A mistake in a config, a file or an argument.

    The message is one line: what was wrong, what was expected, what to do. The tools print it
    without a traceback and exit with code 2; with TAS_LORA_DEBUG=1 they show the traceback.

    Args:
        message: A sentence; with ``field``, what is said of it: 'must be ...'.
        field: Name of the wrong value where it is used, empty for the whole part. The part whose
            argument it is comes before it: its class, or its place in a config.
    """

    def __init__(self, message: str, field: str | None = None):
        super().__init__(message)
        self.message, self.joint = message, ': ' if field is None else ' '
        self.field, self.part = field or '', ''

    def __str__(self) -> str:
        name = '.'.join(filter(None, (self.part, self.field)))
        return f'{name}{self.joint}{self.message}' if name else self.message


class NonFiniteError(UserError):
    """A training step that was not taken, because its loss or a gradient is infinite or NaN."""


@contextmanager
def blame(what: str, field: str | None = None) -> Iterator[None]:
    """Turn any error of a step that only reads what the user gave into a :class:`UserError`.

    Args:
        what: The step, as the start of the message: 'the config cannot be read'.
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
