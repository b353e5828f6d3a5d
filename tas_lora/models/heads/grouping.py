"""Groups of blocks; ``router_head.py`` gives each its own head and, at first, its own expert."""

import zlib
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np

from ...checks import natural, positive, some_of
from ...errors import UserError
from ...registry import TASK_UTILS
from ...search.complexity import count_params
from ...structures import SearchSpace, Subnet

BLOCK_ATTRIBUTES = ('num_heads', 'mlp_ratio')
SUBNET_ATTRIBUTES = ('embed_dim', 'depth', 'patch_size')
ATTRIBUTES = BLOCK_ATTRIBUTES + SUBNET_ATTRIBUTES


def block_attributes(subnet: Subnet, block: int, attributes: Sequence[str]) -> tuple:
    """Values of ``attributes`` at one block, e.g. (num_heads, mlp_ratio, embed_dim)."""
    values = dict(
        num_heads=subnet.num_heads[block],
        mlp_ratio=subnet.mlp_ratio[block],
        embed_dim=subnet.embed_dim,
        depth=subnet.depth,
        patch_size=subnet.patch_size,
    )
    return tuple(values[attribute] for attribute in attributes)


def checked_attributes(values, space: SearchSpace) -> tuple[str, ...]:
    """Return some of :data:`ATTRIBUTES` that ``space`` has; raises :class:`UserError` otherwise."""
    attributes = some_of(values, 'attributes', ATTRIBUTES)
    if 'patch_size' in attributes and space.patch_size is None:
        raise UserError(
            "has 'patch_size', of which the space has no choices; add some", 'attributes'
        )
    return attributes


class BlockGroups:
    """Partition of the blocks of all subnets; its length is the number of groups K."""

    num_groups: int

    def __len__(self) -> int:
        return self.num_groups

    def __call__(self, subnet: Subnet) -> list[int]:
        """Group of every block."""
        raise NotImplementedError


@TASK_UTILS.register_module()
class ArchitectureGroups(BlockGroups):
    """Blocks with equal ``attributes`` share a group (TAS-LoRA's grouping).

    Args:
        space: The search space, or its dict.
        attributes: Some of 'num_heads', 'mlp_ratio', 'embed_dim', 'depth', and 'patch_size' if
            the space has several.
        clusters: Choices of an attribute to treat as one, e.g.
            ``dict(embed_dim=[[192, 216], [240]])``. This lowers K, which the paper names as a
            limitation. Every choice must be in one cluster.
    """

    def __init__(
        self,
        space: SearchSpace | dict,
        attributes: Sequence[str] = ('num_heads', 'mlp_ratio', 'embed_dim'),
        clusters: Mapping[str, Sequence[Sequence]] | None = None,
    ):
        self.space = SearchSpace.coerce(space)
        self.attributes = checked_attributes(attributes, self.space)
        clusters = {} if clusters is None else clusters
        self._check_clusters(clusters)
        self._cluster = []  # index of the cluster of each choice, for each attribute
        sizes = []
        for name in self.attributes:
            lists = clusters.get(name, [[choice] for choice in getattr(self.space, name)])
            self._cluster.append({choice: i for i, one in enumerate(lists) for choice in one})
            sizes.append(len(lists))
        self._group = {key: g for g, key in enumerate(product(*map(range, sizes)))}
        self.num_groups = len(self._group)

    def __call__(self, subnet: Subnet) -> list[int]:
        """Group of every block; raises :class:`UserError` if a block belongs to none."""
        return [self._group_of(subnet, block) for block in range(subnet.depth)]

    def _group_of(self, subnet: Subnet, block: int) -> int:
        values = block_attributes(subnet, block, self.attributes)
        try:
            return self._group[tuple(c[v] for c, v in zip(self._cluster, values, strict=True))]
        except KeyError:
            has = ', '.join(
                f'{n} {v if v is None else format(v, "g")}'
                for n, v in zip(self.attributes, values, strict=True)
            )
            choices = ', '.join(f'{n} {list(getattr(self.space, n))}' for n in self.attributes)
            raise UserError(
                f'block {block} of the subnet ({has}) belongs to no group of experts; '
                f'choose from {choices}'
            ) from None

    def _check_clusters(self, clusters: Mapping) -> None:
        if not isinstance(clusters, Mapping):
            raise UserError(f'must be a dict of lists of lists, got {clusters!r}', 'clusters')
        for name, members in clusters.items():
            if name not in self.attributes:
                raise UserError(f'is not among attributes, {self.attributes}', f'clusters.{name}')
            choices = list(getattr(self.space, name))
            if not _is_partition(members, choices):
                raise UserError(
                    f'must hold every choice once: {choices}, in lists of those to treat as one, '
                    f'got {members!r}',
                    f'clusters.{name}',
                )


def _is_partition(members, choices: list) -> bool:
    """Whether ``members`` are non-empty lists that hold each of ``choices`` once."""
    lists = [members, *members] if isinstance(members, (list, tuple)) else [None]
    if not all(isinstance(value, (list, tuple)) and value for value in lists):
        return False
    clustered = [choice for cluster in members for choice in cluster]
    return len(clustered) == len(choices) and all(choice in clustered for choice in choices)


@TASK_UTILS.register_module()
class RandomGroups(BlockGroups):
    """Every block of every subnet is in a seeded random group (the paper's control).

    The group depends only on seed, subnet and position, so it is the same at each visit, rank
    and machine.

    Args:
        space: Not used; all groupings have it.
        num_groups: Number of groups K.
        seed: Seed of the assignment.
    """

    def __init__(self, space: SearchSpace | dict, num_groups: int, seed: int = 0):
        self.num_groups = positive(num_groups, 'num_groups', int)
        self.seed = natural(seed, 'seed')

    def __call__(self, subnet: Subnet) -> list[int]:
        """Group of every block."""
        key = zlib.crc32(repr(subnet).encode())
        rng = np.random.default_rng((self.seed, key))
        return rng.integers(self.num_groups, size=subnet.depth).tolist()


@TASK_UTILS.register_module()
class ParamCountGroups(BlockGroups):
    """All blocks of subnets of similar size share a group (the paper's control).

    The bounds are quantiles over uniformly drawn subnets, so each group is visited equally often.
    The paper does not say how it draws them.

    Args:
        space: The search space, or its dict.
        num_groups: Number of groups K.
        samples: Subnets drawn for the quantiles.
        seed: Seed of the draws.
    """

    def __init__(
        self, space: SearchSpace | dict, num_groups: int, samples: int = 4096, seed: int = 0
    ):
        # Each sample is a subnet, hence the limit; more groups than samples would be empty.
        samples = positive(samples, 'samples', int, most=10**6)
        self.num_groups = positive(num_groups, 'num_groups', int, samples)
        rng = np.random.default_rng(natural(seed, 'seed'))
        space = SearchSpace.coerce(space)
        counts = [count_params(space.sample(rng)) for _ in range(samples)]
        inner = np.linspace(0, 1, self.num_groups + 1)[1:-1]
        self.bounds = np.quantile(counts, inner)

    def __call__(self, subnet: Subnet) -> list[int]:
        """Group of every block."""
        group = int(np.searchsorted(self.bounds, count_params(subnet), side='right'))
        return [group] * subnet.depth
