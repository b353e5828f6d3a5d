"""Which modules of a network are adapted, and what an adapter can be told about them."""

import inspect
import re
from collections.abc import Sequence

from torch import nn

from tas_lora.errors import UserError, blame

from .vit_families import GROUPS
from .vits import find_vits, vit_of


def chosen_modules(
    part: nn.Module, targets: str | Sequence[str], layers: str | Sequence[int]
) -> list[str]:
    """Names of the modules that ``targets`` and ``layers`` of ``adapt`` mean, in the model's order.

    Raises:
        UserError: If they mean none, one is inside another, or the library does not call one.
    """
    groups = [targets] if isinstance(targets, str) else targets
    if is_list(groups) and groups and all(each in GROUPS for each in groups):
        vit = vit_of(part)
        wanted = {
            name
            for block in vit.chosen(layers)
            for group in groups
            for name in vit.names(group, block)
        }
        names = [name for name, _ in part.named_modules() if name in wanted]
    elif layers == 'all':
        names = _matches(part, targets)
    else:
        raise UserError(f'layers: {layers!r} is for groups; name the blocks in targets as well')
    for name in names:
        inside = next((other for other in names if other.startswith(f'{name}.')), None)
        if inside:
            raise UserError(f'targets: {inside} is inside {name}; choose one of them')
        _check_called(part, name)
    return names


def facts_of(part: nn.Module, names: Sequence[str]) -> dict[str, dict]:
    """What adapters can be told about modules of a known vision transformer, by name.

    Returns:
        ``extra_tokens``; ``parts`` of the output of a linear layer; and ``grid``, if it is no
        square. A square is left open for images of other sizes. Nothing if the network is unknown.
    """
    facts = {name: {} for name in names}
    for vit in find_vits(part):
        parts, grid = vit.parts(), vit.grid
        for name in names:
            if any(f'{name}.'.startswith(f'{block}.') for block in vit.blocks):
                facts[name] = dict(extra_tokens=vit.extra_tokens)
                if name in parts:
                    facts[name]['parts'] = parts[name]
                if grid is not None and grid[0] != grid[1]:
                    facts[name]['grid'] = grid
    return facts


def is_list(patterns) -> bool:
    """Whether it is a list and no text."""
    return isinstance(patterns, Sequence) and not isinstance(patterns, str)


def fits(pattern: str, name: str) -> bool:
    """Whether a regular expression matches a full name.

    Raises:
        UserError: If it is no regular expression.
    """
    with blame(f'targets: {pattern!r} is not a regular expression'):
        return re.fullmatch(pattern, name) is not None


def _matches(part: nn.Module, targets: Sequence[str]) -> list[str]:
    """Names of the modules that any expression matches, in the model's order."""
    if not is_list(targets) or not targets:
        raise UserError(
            f'targets must be some of {", ".join(GROUPS)}, or a list of regular expressions, got '
            f'{targets!r}'
        )
    known = [name for name, _ in part.named_modules() if name]
    for target in targets:
        if not any(fits(target, name) for name in known):
            linear = [n for n, module in part.named_modules() if isinstance(module, nn.Linear)]
            raise UserError(
                f'targets: {target!r} matches no full name; linear layers are '
                f'{", ".join(linear[:4])} ...'
            )
    return [name for name in known if any(fits(target, name) for target in targets)]


def _check_called(part: nn.Module, name: str) -> None:
    """Refuse a module around which the library goes: it reads the weight and calls a kernel.

    timm's and MMPretrain's BEiT read ``self.qkv.weight``, torch's ``nn.MultiheadAttention``
    ``self.out_proj.weight``.
    """
    path = name.split('.')
    for depth in range(len(path)):
        owner, inside = part.get_submodule('.'.join(path[:depth])), '.'.join(path[depth:])
        if re.search(rf'\bself\.{re.escape(inside)}\.(weight|bias)\b', _source(type(owner))):
            raise UserError(
                f'targets: {type(owner).__name__} reads the weight of {name} without calling it, '
                'so an adapter there has no effect; choose other layers'
            )


def _source(kind: type) -> str:
    """The text of a class's forward; '' if it has none in Python."""
    try:
        return inspect.getsource(kind.forward)
    except (OSError, TypeError):
        return ''
