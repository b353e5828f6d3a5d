"""Where the blocks and layers of a vision transformer are, by library."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from tas_lora.errors import UserError

QKV = ('q', 'k', 'v')
LINEAR_GROUPS = ('qkv', 'proj', 'mlp')
GROUPS = (*LINEAR_GROUPS, 'attention', 'ffn', 'block')


@dataclass(frozen=True)
class Family:
    """A kind of vision transformer.

    Args:
        library: Top package of the class.
        kind: Name of the class or of one it inherits from.
        blocks: Name of the list of blocks in it.
        groups: For each group, the names of its modules in a block.
        extra_tokens: Gives the number of tokens before the patches of a network.
        grid: Gives the rows and columns of patches of a network's own image size.
    """

    library: str
    kind: str
    blocks: str
    groups: dict[str, tuple[str, ...]]
    extra_tokens: Callable[[nn.Module], int]
    grid: Callable[[nn.Module], tuple[int, int]]

    def has(self, module: nn.Module) -> bool:
        """Whether the module is of this family."""
        return any(
            each.__name__ == self.kind and each.__module__.split('.')[0] == self.library
            for each in type(module).__mro__
        )


FAMILIES = (
    Family(
        library='timm',
        kind='VisionTransformer',
        blocks='blocks',
        groups=dict(
            qkv=('attn.qkv',),
            proj=('attn.proj',),
            mlp=('mlp.fc1', 'mlp.fc2'),
            attention=('attn',),
            ffn=('mlp',),
            block=('',),
        ),
        extra_tokens=lambda vit: vit.num_prefix_tokens,
        grid=lambda vit: vit.patch_embed.grid_size,
    ),
    Family(
        library='mmpretrain',
        kind='ViTSAM',
        blocks='layers',
        groups=dict(
            qkv=('attn.qkv',),
            proj=('attn.proj',),
            mlp=('ffn.layers.0.0', 'ffn.layers.1'),
            attention=('attn',),
            ffn=('ffn.layers',),
            block=('',),
        ),
        extra_tokens=lambda vit: 0,
        grid=lambda vit: vit.patch_resolution,
    ),
)


@dataclass(frozen=True)
class ViT:
    """A vision transformer inside a module; all names are full names in that module.

    Args:
        family: Its family.
        module: The transformer itself.
        blocks: Names of its blocks.
    """

    family: Family
    module: nn.Module
    blocks: tuple[str, ...]

    @property
    def extra_tokens(self) -> int:
        """Number of class and register tokens before the patches."""
        return self.family.extra_tokens(self.module)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches of its own image size."""
        return tuple(self.family.grid(self.module))

    def names(self, group: str, block: int) -> list[str]:
        """Names of a group's modules in a block."""
        return [f'{self.blocks[block]}.{each}'.rstrip('.') for each in self.family.groups[group]]

    def parts(self, name: str) -> tuple[str, ...] | None:
        """Names of the equal parts of a linear layer's output; None if it is in no group."""
        for group in LINEAR_GROUPS:
            for block in range(len(self.blocks)):
                layers = self.names(group, block)
                if name in layers and group != 'qkv':
                    return ('out',)
                if name in layers:
                    return QKV if len(layers) == 1 else (QKV[layers.index(name)],)
        return None

    def chosen(self, layers: str | Sequence[int]) -> list[int]:
        """Numbers of the blocks that ``layers`` means.

        Args:
            layers: 'all', 'first_half', 'last_half' (of an odd number, the half with one more),
                or a list of numbers from 0.

        Raises:
            UserError: If it is none of these.
        """
        depth = len(self.blocks)
        half = depth // 2
        known = dict(all=range(depth), first_half=range(half), last_half=range(half, depth))
        if isinstance(layers, str) and layers in known:
            return list(known[layers])
        is_list = isinstance(layers, Sequence) and not isinstance(layers, str) and len(layers) > 0
        if is_list and all(type(each) is int and 0 <= each < depth for each in layers):
            return sorted(set(layers))
        raise UserError(
            f"layers must be 'all', 'first_half', 'last_half' or a list of block numbers from 0 to "
            f'{depth - 1}, got {layers!r}'
        )


def vit_of(module: nn.Module) -> ViT:
    """Find the vision transformer that the module is or holds.

    Raises:
        UserError: If there is none of a known family, or more than one.
    """
    found = _find(module)
    if len(found) == 1:
        return found[0]
    what = 'no' if not found else f'{len(found)}'
    known = ', '.join(f'{family.library} {family.kind}' for family in FAMILIES)
    raise UserError(
        f'the {type(module).__name__} has {what} vision transformers of a known kind ({known}); '
        'give targets as regular expressions, or name the part that holds one'
    )


def _find(module: nn.Module, name: str = '') -> list[ViT]:
    """Vision transformers inside, none inside another."""
    for family in FAMILIES:
        if family.has(module):
            place = '.'.join(filter(None, (name, family.blocks)))
            count = len(module.get_submodule(family.blocks))
            return [ViT(family, module, tuple(f'{place}.{i}' for i in range(count)))]
    children = module.named_children()
    return [each for key, child in children for each in _find(child, f'{name}.{key}'.lstrip('.'))]
