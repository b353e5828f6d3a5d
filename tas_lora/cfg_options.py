"""``--cfg-options``: values as they are meant, and variables of a config that nothing reads."""

import re
from collections.abc import Iterator
from inspect import Parameter
from types import UnionType
from typing import Any, Union, get_args, get_origin

from mmengine.config import DictAction

_GAP = '\ue000'  # in place of a blank inside of an element; MMEngine drops blanks
_QUOTES = ('"', "'")


class Options(dict):
    """Options by dotted key, as read without a config; ``texts`` has them as they were typed."""

    def __init__(self, options=(), texts=()):
        super().__init__(options)
        self.texts: dict[str, str] = dict(texts)

    def below(self, prefix: str) -> 'Options':
        """The options whose key begins so."""
        return Options(*({k: d[k] for k in d if k.startswith(prefix)} for d in (self, self.texts)))


def read_value(text: str):
    """Read a value as MMEngine's ``DictAction`` does, but keep blanks, and quotes mean text."""
    inside = text[1:-1]
    if len(text) > 1 and text[0] in _QUOTES and text[-1] == text[0] and text[0] not in inside:
        return inside
    try:
        inner = re.sub(r'(?<=[^\s,(\[])\s(?=\s*[^\s,)\]])', _GAP, text)
        value = DictAction._parse_iterable(inner)
    except AssertionError:  # brackets without their partners
        return text
    return text if isinstance(value, str) else _with_blanks(value)


def _with_blanks(value):
    if isinstance(value, (list, tuple)):
        return type(value)(map(_with_blanks, value))
    return value.replace(_GAP, ' ') if isinstance(value, str) else value


def fitting_value(text: str, accepted: tuple[type, ...] | None, present):
    """The value of an option for its field.

    Args:
        text: As typed.
        accepted: Types that the field accepts; None if it is not known.
        present: The field's value in the config, None if it has none.
    """
    value = read_value(text)
    if accepted is None and isinstance(present, str):
        accepted = (str, list, tuple) if text[:1] in '[(' else (str,)
    if value is None or accepted is None or isinstance(value, accepted) or str not in accepted:
        if isinstance(value, (list, tuple)) and _all_text(present):
            return type(value)(_items(text)) if len(_items(text)) == len(value) else value
        return value
    return text


def _all_text(present) -> bool:
    is_list = isinstance(present, (list, tuple)) and bool(present)
    return is_list and all(isinstance(item, str) for item in present)


def _items(text: str) -> list[str]:
    """Items of a flat list, as text."""
    return [item.strip().strip('\'"') for item in text.strip('[]()').split(',') if item.strip()]


def accepted_types(parameter: Parameter) -> tuple[type, ...] | None:
    """Types that an argument accepts, by its annotation or else its default; None if unknown."""
    if parameter.annotation is Parameter.empty:
        return (str,) if isinstance(parameter.default, str) else None
    return _types(parameter.annotation)


def _types(annotation) -> tuple[type, ...] | None:
    if get_origin(annotation) in (Union, UnionType):
        parts = [_types(part) for part in get_args(annotation)]
        return None if None in parts else tuple(kind for part in parts for kind in part)
    kind = get_origin(annotation) or annotation
    if kind is float:
        return (float, int)
    return (kind,) if isinstance(kind, type) and kind is not object else None


def fields_made_from(config: dict, name: str, read: set[str]) -> list[str]:
    """Dotted names of fields that have the value of the variable ``name``.

    A config's fields do not remember from which variable they were made. A dict has that value if
    it has all of its items, as after ``dict(**split, part='train')``.
    """
    value = config[name]
    if value is None or isinstance(value, bool):
        return []
    return [
        path
        for field in config
        if field in read and field != name
        for path, node in _nodes(config[field], field)
        if _has(node, value)
    ]


def _nodes(node, path: str) -> Iterator[tuple[str, Any]]:
    yield path, node
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _nodes(value, f'{path}.{key}')
    elif isinstance(node, (list, tuple)):
        for i, value in enumerate(node):  # options reach the dicts in a list, but no numbers
            is_reached = isinstance(node, list) and isinstance(value, dict)
            yield from _nodes(value, f'{path}.{i}' if is_reached else path)


def _has(node, value) -> bool:
    if isinstance(value, dict):
        items = value.items()
        return isinstance(node, dict) and bool(items) and all(node.get(k) == v for k, v in items)
    same = type(node) is type(value) or {type(node), type(value)} <= {list, tuple, int, float}
    return same and node == value
