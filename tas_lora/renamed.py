"""Names of earlier versions: they still work, and warn."""

import warnings
from collections.abc import Callable
from importlib import import_module


def renamed(module: str, **names: str) -> Callable[[str], object]:
    """A module's ``__getattr__`` (PEP 562) for names that it no longer has.

    Args:
        module: Its ``__name__``.
        **names: Old names, and what they are called in it now.
    """

    def find(name: str):
        if name not in names:
            raise AttributeError(f'module {module!r} has no attribute {name!r}')
        new = names[name]
        warnings.warn(f'{module}.{name} is called {new} now', DeprecationWarning, stacklevel=2)
        return getattr(import_module(module), new)

    return find
