"""Checks of single values, each with a message for the person who gave the value.

A check is told the name of its value, not where in a config that stands: who builds the object
says so by :func:`within`, and ``config.addressed`` where the whole config is at hand.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral, Real

from .errors import UserError


@contextmanager
def within(path: str) -> Iterator[None]:
    """Put ``path`` before the field that a :class:`UserError` is about: 'race' before 'first'."""
    try:
        yield
    except UserError as error:
        if not error.part:
            error.field = f'{path}.{error.field}'.removesuffix('.')
        raise


@contextmanager
def of_part(name: str) -> Iterator[None]:
    """Say whose argument a :class:`UserError` is about: of a class, or what stands in a config."""
    try:
        yield
    except UserError as error:
        error.part = error.part or name  # a part of a part has said so itself
        raise


@contextmanager
def inside(file: str) -> Iterator[None]:
    """Put ``file``, or a line of one, before the message of a :class:`UserError`."""
    try:
        yield
    except UserError as error:
        raise UserError(f'{file}: {error}') from error


def positive(value, field: str, kind: type, most: int | None = None) -> int | float:
    """``value`` as ``kind``, int or float; NumPy's numbers are taken, booleans are not.

    Raises:
        UserError: Unless it is a number of that kind above 0, up to ``most`` or a billion.
    """
    accepted = Integral if kind is int else Real
    if isinstance(value, bool) or not isinstance(value, accepted) or not 0 < value <= (most or 1e9):
        name = 'integer' if kind is int else 'number'
        limit = f'; at most {most:,}' if most else ''
        raise UserError(f'must be a positive {name}, got {value!r}{limit}', field)
    return kind(value)


def bounded(value, field: str, most: float = 1.0, reached: bool = True) -> float:
    """``value`` as a float from 0 to ``most``, which itself is refused unless ``reached``.

    Raises:
        UserError: If it is anything else.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= most or (value == most and not reached):
        end = f'to {most:g}' if reached else f'to below {most:g}'
        raise UserError(f'must be a number from 0 {end}, got {value!r}', field)
    return float(value)


def boolean(value, field: str) -> bool:
    """``value`` if it is True or False; raises :class:`UserError`."""
    if not isinstance(value, bool):
        raise UserError(f'must be True or False, got {value!r}', field)
    return value


def natural(value, field: str, most: int | None = None) -> int:
    """``value`` as an integer from 0 up, or to ``most``; raises :class:`UserError`."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < 0 or (most is not None and value > most):
        end = 'up' if most is None else f'to {most:,}'
        raise UserError(f'must be an integer from 0 {end}, got {value!r}', field)
    return int(value)


def positives(values, field: str, kind: type, most: int | None = None) -> tuple:
    """A tuple of :func:`positive` numbers, from a list with at least one."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence) or not values:
        raise UserError(f'must be a list of numbers, got {values!r}', field)
    return tuple(positive(value, f'{field}[{i}]', kind, most) for i, value in enumerate(values))


def one_of(value, field: str, allowed: tuple) -> None:
    """Raise :class:`UserError` unless ``value`` is one of ``allowed``, strings and None."""
    if value not in allowed:
        either = 'one of ' if len(allowed) > 2 else ''
        choices = ' or '.join(map(repr, allowed))
        raise UserError(f'must be {either}{choices}, got {value!r}', field)


def some_of(values, field: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
    """``values``, a list of one or more of ``allowed``, none twice; raises :class:`UserError`."""
    is_list = isinstance(values, Sequence) and not isinstance(values, str)
    names = tuple(values) if is_list else ()
    if not names or any(n not in allowed for n in names) or len(set(names)) < len(names):
        raise UserError(f'must be some of {allowed}, each once, got {values!r}', field)
    return names
