"""Refuse sizes that no machine can hold, before any memory is allocated.

A system may grant memory it does not have; it then kills the process without a message.
"""

from collections.abc import Sequence

from ...checks import positive, positives
from ...errors import UserError
from ...search.complexity import count_params
from ...structures import Subnet

_MOST_WEIGHTS = 4 * 10**9  # 16 GB


def checked_patch_sizes(patch_size: int | Sequence[int], img_size: int) -> tuple[int, ...]:
    """Return one or several patch sizes in rising order; each must divide ``img_size``."""
    if isinstance(patch_size, (list, tuple)) and patch_size:
        several = positives(patch_size, 'patch_size', int)
    else:
        several = (positive(patch_size, 'patch_size', int),)
    for size in several:
        if img_size % size:
            raise UserError(
                f'{img_size} is not a multiple of patch_size {size}; choose one that is', 'img_size'
            )
    return tuple(sorted(set(several)))


def check_weights(count: int, fields: str) -> None:
    """Raise :class:`UserError`, naming ``fields`` to lower, above 4 billion weights."""
    if count > _MOST_WEIGHTS:
        raise UserError(
            f'would have {count:.1e} weights, more than {_MOST_WEIGHTS:.0e}; lower {fields}', ''
        )


def check_supernet(arch: Subnet, spec: dict, experts: list[dict[str, tuple[int, int]]]) -> None:
    """Apply :func:`check_weights` to an ``ElasticViT``.

    Args:
        arch: Size of the supernet.
        spec: Arguments of ``count_params``, except for the classes.
        experts: (experts, rank) by layer kind, for each block.
    """
    width, grid = arch.embed_dim, spec['img_size'] // spec['patch_size']
    count = count_params(arch, **spec, num_classes=1)
    if spec['max_relative_position'] is not None:
        count += 2 * grid**2 * (2 * grid + spec['head_dim'])  # position indices
    for heads, hidden, block in zip(arch.num_heads, arch.hidden_dims, experts, strict=True):
        inner = heads * spec['head_dim']
        ends = dict(qkv=width + 3 * inner, proj=inner + width, fc1=width + hidden)
        ends['fc2'] = ends['fc1']
        count += sum(number * rank * ends[kind] for kind, (number, rank) in block.items())
    fields = 'arch, mole, head_dim, in_channels, max_relative_position, or img_size / patch_size'
    check_weights(count, fields)
