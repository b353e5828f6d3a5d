"""Checks of single values, each with a message for the user who gave the value.

A check knows the name of its value, not its place in a config. The code that builds the object
adds the place by :func:`within`; ``config.addressed`` does so for a whole config.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path

from .errors import UserError


@contextmanager
def within(path: str) -> Iterator[None]:
    """Prefix the field of a :class:`UserError` with ``path``: 'first' becomes 'race.first'."""
    try:
        yield
    except UserError as error:
        if not error.part:
            error.field = f'{path}.{error.field}'.removesuffix('.')
        raise


@contextmanager
def of_part(name: str) -> Iterator[None]:
    """Name the part whose argument a :class:`UserError` is about: a class, or a config entry."""
    try:
        yield
    except UserError as error:
        error.part = error.part or name  # a nested part has already named itself
        raise


@contextmanager
def inside(file: str) -> Iterator[None]:
    """Prefix the message of a :class:`UserError` with ``file``, or a line of one."""
    try:
        yield
    except UserError as error:
        raise UserError(f'{file}: {error}') from error


def positive(value, field: str, kind: type, most: int | None = None) -> int | float:
    """Return ``value`` as ``kind``, int or float; accepts NumPy's numbers, but not booleans.

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
    """``value`` as a float from 0 to ``most``, or to below it unless ``reached``.

    Raises:
        UserError: If it is anything else.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= most or (value == most and not reached):
        end = f'to {most:g}' if reached else f'to below {most:g}'
        raise UserError(f'must be a number from 0 {end}, got {value!r}', field)
    return float(value)


def boolean(value, field: str) -> bool:
    """Return ``value`` if it is True or False; raises :class:`UserError` otherwise."""
    if not isinstance(value, bool):
        raise UserError(f'must be True or False, got {value!r}', field)
    return value


def natural(value, field: str, most: int | None = None) -> int:
    """Return ``value`` as an integer from 0 to ``most``; raises :class:`UserError` otherwise."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < 0 or (most is not None and value > most):
        end = 'up' if most is None else f'to {most:,}'
        raise UserError(f'must be an integer from 0 {end}, got {value!r}', field)
    return int(value)


def positives(values, field: str, kind: type, most: int | None = None) -> tuple:
    """Return a non-empty list as a tuple of :func:`positive` numbers."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence) or not values:
        raise UserError(f'must be a list of numbers, got {values!r}', field)
    return tuple(positive(value, f'{field}[{i}]', kind, most) for i, value in enumerate(values))


def one_of(value, field: str, allowed: tuple) -> None:
    """Raise :class:`UserError` unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        either = 'one of ' if len(allowed) > 2 else ''
        choices = ' or '.join(map(repr, allowed))
        raise UserError(f'must be {either}{choices}, got {value!r}', field)


def some_of(values, field: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
    """Return some of ``allowed``, without repeats; raises :class:`UserError` otherwise."""
    is_list = isinstance(values, Sequence) and not isinstance(values, str)
    names = tuple(values) if is_list else ()
    if not names or any(n not in allowed for n in names) or len(set(names)) < len(names):
        raise UserError(f'must be some of {allowed}, each once, got {values!r}', field)
    return names


def usable_device(device: str, field: str) -> None:
    """Raise :class:`UserError` unless tensors can be put there."""
    import torch  # here, since the package alone loads no framework

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch has no CUDA
        reason = str(error).splitlines()[0]
        raise UserError(f'cannot be {device!r}: {reason}; leave it out', field) from None


def usable_folder(path: str, field: str) -> None:
    """Raise :class:`UserError` unless it is a folder that can be written, or can become one."""
    there = next(x for x in (Path(path), *Path(path).absolute().parents) if x.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        problem = 'cannot be written' if there.is_dir() else 'is a file'
        raise UserError(f'{path}: {there} {problem}; give a folder', field)
