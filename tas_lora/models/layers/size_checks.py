"""Sizes that no machine holds, refused before memory is asked for.

Memory that the system grants and cannot give ends in a killed process, without any message.
"""

from collections.abc import Sequence

from ...checks import positive, positives
from ...errors import UserError
from ...search.complexity import count_params
from ...structures import Subnet

_MOST_WEIGHTS = 4 * 10**9  # 16 GB


def checked_sizes(**sizes: int) -> dict[str, int]:
    """The sizes of an ``ElasticViT``, each a positive integer."""
    for field, size in sizes.items():
        positive(size, field, int)
    return sizes


def checked_patch_sizes(patch_size: int | Sequence[int], img_size: int) -> tuple[int, ...]:
    """One or several patch sizes, from small to large, of each of which the image is a whole."""
    if isinstance(patch_size, (list, tuple)) and patch_size:
        several = positives(patch_size, 'patch_size', int)
    else:
        several = (positive(patch_size, 'patch_size', int),)
    for size in several:
        if img_size % size:
            raise UserError(
                f'{img_size} is no multiple of patch_size {size}; choose one that is', 'img_size'
            )
    return tuple(sorted(set(several)))


def check_weights(count: int, fields: str) -> None:
    """Refuse a part that would have more than 4 billion weights.

    Raises:
        UserError: Naming the ``fields`` that make it large.
    """
    if count > _MOST_WEIGHTS:
        raise UserError(
            f'would have {count:.1e} weights, of at most {_MOST_WEIGHTS:.0e}; lower {fields}', ''
        )


def check_supernet(arch: Subnet, spec: dict, experts: list[dict[str, tuple[int, int]]]) -> None:
    """:func:`check_weights` of an ``ElasticViT``.

    Args:
        arch: Its size.
        spec: What ``count_params`` takes, classes excepted.
        experts: For each block, by layer kind, (experts, rank).
    """
    width, grid = arch.embed_dim, spec['img_size'] // spec['patch_size']
    count = count_params(arch, **spec, num_classes=1)
    count += 2 * grid**2 * (2 * grid + spec['head_dim'])  # indices of positions
    for heads, hidden, block in zip(arch.num_heads, arch.hidden_dims, experts, strict=True):
        inner = heads * spec['head_dim']
        ends = dict(qkv=width + 3 * inner, proj=inner + width, fc1=width + hidden)
        ends['fc2'] = ends['fc1']
        count += sum(number * rank * ends[kind] for kind, (number, rank) in block.items())
    fields = 'arch, mole, head_dim, in_channels, max_relative_position, or img_size / patch_size'
    check_weights(count, fields)
