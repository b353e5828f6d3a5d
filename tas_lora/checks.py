"""Checks of single values, each with a message for the person who gave the value.

A check knows the name of its value, not where in a config that stands: who builds the object says
so by :func:`within`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral, Real

from .errors import UserError


@contextmanager
def within(path: str) -> Iterator[None]:
    """Put ``path``, a place in a config, before what a :class:`UserError` of its value says."""
    try:
        yield
    except UserError as error:
        raise UserError(f'{path}: {error}') from error


def positive(value, field: str, kind: type, most: int | None = None) -> int | float:
    """``value`` as ``kind``, int or float; NumPy's numbers are taken, booleans are not.

    Raises:
        UserError: Unless it is a number of that kind above 0, up to ``most`` or a billion.
    """
    accepted = Integral if kind is int else Real
    if isinstance(value, bool) or not isinstance(value, accepted) or not 0 < value <= (most or 1e9):
        name = 'integer' if kind is int else 'number'
        limit = f'; at most {most:,}' if most else ''
        raise UserError(f'{field} must be a positive {name}, got {value!r}{limit}')
    return kind(value)


def bounded(value, field: str, most: float = 1.0, reached: bool = True) -> float:
    """``value`` as a float from 0 to ``most``, which itself is refused unless ``reached``.

    Raises:
        UserError: If it is anything else.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= most or (value == most and not reached):
        end = f'to {most:g}' if reached else f'to below {most:g}'
        raise UserError(f'{field} must be a number from 0 {end}, got {value!r}')
    return float(value)


def boolean(value, field: str) -> bool:
    """``value`` if it is True or False; raises :class:`UserError`."""
    if not isinstance(value, bool):
        raise UserError(f'{field} must be True or False, got {value!r}')
    return value


def natural(value, field: str, most: int | None = None) -> int:
    """``value`` as an integer from 0 up, or to ``most``; raises :class:`UserError`."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < 0 or (most is not None and value > most):
        end = 'up' if most is None else f'to {most:,}'
        raise UserError(f'{field} must be an integer from 0 {end}, got {value!r}')
    return int(value)


def positives(values, field: str, kind: type, most: int | None = None) -> tuple:
    """A tuple of :func:`positive` numbers, from a list with at least one."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence) or not values:
        raise UserError(f'{field} must be a list of numbers, got {values!r}')
    return tuple(positive(value, f'{field}[{i}]', kind, most) for i, value in enumerate(values))


def one_of(value, field: str, allowed: tuple) -> None:
    """Raise :class:`UserError` unless ``value`` is one of ``allowed``, strings and None."""
    if value not in allowed:
        either = 'one of ' if len(allowed) > 2 else ''
        choices = ' or '.join(map(repr, allowed))
        raise UserError(f'{field} must be {either}{choices}, got {value!r}')


def some_of(values, field: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
    """``values``, a list of one or more of ``allowed``, none twice; raises :class:`UserError`."""
    is_list = isinstance(values, Sequence) and not isinstance(values, str)
    names = tuple(values) if is_list else ()
    if not names or any(n not in allowed for n in names) or len(set(names)) < len(names):
        raise UserError(f'{field} must be some of {allowed}, each once, got {values!r}')
    return names
