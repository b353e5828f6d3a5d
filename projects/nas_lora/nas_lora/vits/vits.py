"""Where the blocks and layers of a vision transformer are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from tas_lora.errors import UserError
from tas_lora.models import ElasticViT

from .vit_families import FAMILIES, LINEAR_GROUPS, Family

QKV = ('q', 'k', 'v')


@dataclass(frozen=True)
class ViT:
    """A vision transformer inside a module; all names are full names in that module.

    Args:
        family: Its family.
        module: The transformer itself.
        blocks: Its blocks by name.
    """

    family: Family
    module: nn.Module
    blocks: Mapping[str, nn.Module]

    @property
    def extra_tokens(self) -> int:
        """Number of class and register tokens before the patches."""
        return self.family.extra_tokens(self.module)

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of patches of its own image size; None if it has none."""
        grid = self.family.grid(self.module)
        return None if grid is None else tuple(grid)

    def names(self, group: str, block: str) -> list[str]:
        """Names of a group's modules in the block of that name.

        Raises:
            UserError: If the block has no such modules.
        """
        names = self._names(group, block)
        if not names:
            expected = ' nor '.join(' and '.join(each) for each in self.family.groups[group])
            raise UserError(
                f'targets: {group!r}: {block} is a {type(self.blocks[block]).__name__} without '
                f'{expected}; give the names of its layers as regular expressions'
            )
        return names

    def parts(self) -> dict[str, tuple[str, ...]]:
        """The linear layers by name, with the names of the equal parts of their outputs."""
        parts = {}
        for block in self.blocks:
            for group in LINEAR_GROUPS:
                parts |= dict.fromkeys(self._names(group, block), ('out',))
            qkv = self._names('qkv', block)
            parts |= {qkv[0]: QKV} if len(qkv) == 1 else dict(zip(qkv, zip(QKV), strict=False))
        return parts

    def chosen(self, layers: str | Sequence[int]) -> list[str]:
        """Names of the blocks that ``layers`` means.

        Args:
            layers: 'all', 'first_half', 'last_half' (of an odd number, the half with one more),
                or a list of numbers from 0.

        Raises:
            UserError: If it is none of these.
        """
        names, half = list(self.blocks), len(self.blocks) // 2
        known = dict(all=names, first_half=names[:half], last_half=names[half:])
        if isinstance(layers, str) and layers in known:
            return known[layers]
        is_list = isinstance(layers, Sequence) and not isinstance(layers, str) and len(layers) > 0
        if is_list and all(type(i) is int and 0 <= i < len(names) for i in layers):
            return [names[i] for i in sorted(set(layers))]
        raise UserError(
            f"layers must be 'all', 'first_half', 'last_half' or a list of block numbers from 0 to "
            f'{len(names) - 1}, got {layers!r}'
        )

    def _names(self, group: str, block: str) -> list[str]:
        """As :meth:`names`; [] if the block has no such modules."""
        known = {name for name, _ in self.blocks[block].named_modules()}
        choices = self.family.groups[group]
        found = next((names for names in choices if known.issuperset(names)), ())
        return [f'{block}.{name}'.rstrip('.') for name in found]


def vit_of(module: nn.Module) -> ViT:
    """Find the vision transformer that the module is or holds.

    Raises:
        UserError: If there is none of a known family, or more than one.
    """
    found = find_vits(module)
    if len(found) == 1:
        return found[0]
    advice = 'give targets as regular expressions'
    if any(isinstance(each, ElasticViT) for each in module.modules()):
        advice = 'cut a subnet out of the ElasticViT by nas_lora.vits.subnets.cut_out'
    elif found:
        advice = 'name as part the one to adapt'
    known = '; '.join(f'{family.library}: {", ".join(family.kinds)}' for family in FAMILIES)
    raise UserError(
        f'the {type(module).__name__} has {len(found)} vision transformers of a known class '
        f'({known}); {advice}'
    )


def find_vits(module: nn.Module, name: str = '') -> list[ViT]:
    """All known vision transformers in a module, none of them inside another.

    Args:
        module: Where to look.
        name: Its own name, before the names of its parts.
    """
    for family in FAMILIES:
        for blocks in family.blocks if family.has(module) else ():
            place = f'{name}.{blocks}'.lstrip('.')
            found = _submodule(module, blocks)
            if found is not None:
                inside = {f'{place}.{key}': block for key, block in found.named_children()}
                return [ViT(family, module, inside)]
    return [
        vit
        for key, child in module.named_children()
        for vit in find_vits(child, f'{name}.{key}'.lstrip('.'))
    ]


def _submodule(module: nn.Module, name: str) -> nn.Module | None:
    for key in name.split('.'):
        module = getattr(module, key, None)
    return module
