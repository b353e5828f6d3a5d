"""Groups of blocks: which router head a block goes through, and which expert it starts with."""

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
    """``values``, some of :data:`ATTRIBUTES` that ``space`` has; raises :class:`UserError`."""
    attributes = some_of(values, 'attributes', ATTRIBUTES)
    if 'patch_size' in attributes and space.patch_size is None:
        raise UserError("has 'patch_size', which the space leaves open; add choices", 'attributes')
    return attributes


class BlockGroups:
    """A partition of the blocks of all subnets; its length is the number of groups K."""

    def __len__(self) -> int:
        raise NotImplementedError

    def __call__(self, subnet: Subnet) -> list[int]:
        """Group of every block."""
        raise NotImplementedError


@TASK_UTILS.register_module()
class ArchitectureGroups(BlockGroups):
    """Blocks that agree in ``attributes`` share a group (TAS-LoRA's grouping).

    Args:
        space: The search space, or its dict.
        attributes: Out of 'num_heads', 'mlp_ratio', 'embed_dim', 'depth', and 'patch_size' where
            the space has several.
        clusters: Choices of an attribute to be taken as one, e.g.
            ``dict(embed_dim=[[192, 216], [240]])``, so that K falls: an answer to a limitation
            the paper names. Every choice must be in one cluster.
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
        # For each attribute the cluster of each choice; on its own unless clustered.
        self._cluster = [
            {
                choice: i
                for i, members in enumerate(clusters.get(name, [[c] for c in choices]))
                for choice in members
            }
            for name, choices in ((n, getattr(self.space, n)) for n in self.attributes)
        ]
        sizes = [len(set(clusters.values())) for clusters in self._cluster]
        self._group = {key: g for g, key in enumerate(product(*map(range, sizes)))}

    def __len__(self) -> int:
        return len(self._group)

    def __call__(self, subnet: Subnet) -> list[int]:
        """Group of every block.

        Raises:
            UserError: If a block belongs to no group.
        """
        return [self._group_of(subnet, block) for block in range(subnet.depth)]

    def _group_of(self, subnet: Subnet, block: int) -> int:
        values = block_attributes(subnet, block, self.attributes)
        if any(v not in cluster for v, cluster in zip(values, self._cluster, strict=True)):
            has = ', '.join(
                f'{n} {v if v is None else format(v, "g")}'
                for n, v in zip(self.attributes, values, strict=True)
            )
            choices = ', '.join(f'{n} {list(getattr(self.space, n))}' for n in self.attributes)
            raise UserError(
                f'block {block} of the subnet ({has}) belongs to no group of experts; '
                f'choose from {choices}'
            )
        return self._group[tuple(c[v] for c, v in zip(self._cluster, values, strict=True))]

    def _check_clusters(self, clusters: Mapping) -> None:
        if not isinstance(clusters, Mapping):
            raise UserError(f'must be a dict of lists of lists, got {clusters!r}', 'clusters')
        for name, members in clusters.items():
            if name not in self.attributes:
                raise UserError(f'is not among attributes, {self.attributes}', f'clusters.{name}')
            choices = list(getattr(self.space, name))
            if not _is_partition(members, choices):
                raise UserError(
                    f'must hold every choice once: {choices}, in lists of those to be taken as '
                    f'one, got {members!r}',
                    f'clusters.{name}',
                )


def _is_partition(members, choices: list) -> bool:
    """Whether ``members`` are lists, none empty, that hold each of ``choices`` once."""

    def is_list(value) -> bool:
        return isinstance(value, (list, tuple)) and bool(value)

    if not is_list(members) or not all(map(is_list, members)):
        return False
    clustered = [choice for cluster in members for choice in cluster]
    return len(clustered) == len(choices) and all(choice in clustered for choice in choices)


@TASK_UTILS.register_module()
class RandomGroups(BlockGroups):
    """Every block of every subnet falls in a seeded random group (the paper's control).

    The group is a function of seed, subnet and position, so it is the same at each visit, on
    each rank and machine.

    Args:
        space: Not used; all groupings are built alike.
        num_groups: Number of groups K.
        seed: Seed of the assignment.
    """

    def __init__(self, space: SearchSpace | dict, num_groups: int, seed: int = 0):
        self.num_groups = positive(num_groups, 'num_groups', int)
        self.seed = natural(seed, 'seed')

    def __len__(self) -> int:
        return self.num_groups

    def __call__(self, subnet: Subnet) -> list[int]:
        """Group of every block."""
        key = zlib.crc32(repr(subnet).encode())
        rng = np.random.default_rng((self.seed, key))
        return rng.integers(self.num_groups, size=subnet.depth).tolist()


@TASK_UTILS.register_module()
class ParamCountGroups(BlockGroups):
    """Subnets of similar size share a group, in all their blocks (the paper's control).

    The bounds are quantiles over uniformly drawn subnets, so that each group is visited equally
    often. How the paper draws them is not published.

    Args:
        space: The search space, or its dict.
        num_groups: Number of groups K.
        samples: Subnets drawn for the quantiles.
        seed: Seed of the draws.
    """

    def __init__(
        self, space: SearchSpace | dict, num_groups: int, samples: int = 4096, seed: int = 0
    ):
        # As many subnets are drawn, hence the limit; more groups than subnets would be empty.
        samples = positive(samples, 'samples', int, most=10**6)
        self.num_groups = positive(num_groups, 'num_groups', int, samples)
        rng = np.random.default_rng(natural(seed, 'seed'))
        space = SearchSpace.coerce(space)
        counts = [count_params(space.sample(rng)) for _ in range(samples)]
        inner = np.linspace(0, 1, self.num_groups + 1)[1:-1]
        self.bounds = np.quantile(counts, inner)

    def __len__(self) -> int:
        return self.num_groups

    def __call__(self, subnet: Subnet) -> list[int]:
        """Group of every block, the same for all."""
        group = int(np.searchsorted(self.bounds, count_params(subnet), side='right'))
        return [group] * subnet.depth
