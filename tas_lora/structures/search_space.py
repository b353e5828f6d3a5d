"""The choices a subnet is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import UserError
from .subnet import Subnet, positives


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """All subnets with one width, one depth, and heads and MLP ratio free in each block.

    Draws follow AutoFormer: ``embed_dim`` and ``depth`` once per subnet, ``mlp_ratio`` and
    ``num_heads`` once per block, each uniform over its choices. Randomness comes in as a
    generator, so a draw is a function of its seed.

    Args:
        embed_dim: Choices of the width.
        depth: Choices of the number of blocks.
        num_heads: Choices of a block's attention heads.
        mlp_ratio: Choices of a block's MLP ratio.

    Raises:
        UserError: If a field has no choice, a repeated one, or one that is no positive number, or
            a depth is above 1,000.
    """

    embed_dim: tuple[int, ...]
    depth: tuple[int, ...]
    num_heads: tuple[int, ...]
    mlp_ratio: tuple[float, ...]

    def __post_init__(self):
        for name in _FIELDS:
            kind = float if name == 'mlp_ratio' else int
            choices = positives(getattr(self, name), f'space.{name}', kind)
            if len(set(choices)) < len(choices):
                raise UserError(f'space.{name} repeats a choice: {list(choices)}')
            if name == 'depth' and max(choices) > _MOST_BLOCKS:
                raise UserError(f'space.depth must be at most {_MOST_BLOCKS:,}, got {max(choices)}')
            object.__setattr__(self, name, choices)
        self.smallest()  # refused if its MLP has no channel

    @staticmethod
    def field_names() -> tuple[str, ...]:
        """The attributes that differ between subnets."""
        return _FIELDS

    @classmethod
    def coerce(cls, value: 'SearchSpace | Mapping') -> 'SearchSpace':
        """``value`` itself if it is a search space, else one from its dict."""
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping) or set(value) != set(_FIELDS):
            raise UserError(f'a search space is a dict of exactly {_FIELDS}, got {value!r}')
        return cls(**value)

    def sample(self, rng: np.random.Generator) -> Subnet:
        """Uniform choices: depth, then MLP ratios, then heads, then width."""
        depth = _pick(self.depth, rng)
        mlp_ratio = [_pick(self.mlp_ratio, rng) for _ in range(depth)]
        num_heads = [_pick(self.num_heads, rng) for _ in range(depth)]
        return Subnet(_pick(self.embed_dim, rng), num_heads, mlp_ratio)

    def mutate(
        self, subnet: Subnet, rng: np.random.Generator, gene_prob: float, shape_prob: float
    ) -> Subnet:
        """Redraw depth and width with ``shape_prob``, each block's genes with ``gene_prob``.

        New blocks are drawn uniformly; a redraw may return the old value (AutoFormer).
        """
        depth = _pick(self.depth, rng) if rng.random() < shape_prob else subnet.depth

        def redraw(genes, choices):
            genes = [*genes[:depth], *(_pick(choices, rng) for _ in range(depth - len(genes)))]
            return [_pick(choices, rng) if rng.random() < gene_prob else g for g in genes]

        mlp_ratio = redraw(subnet.mlp_ratio, self.mlp_ratio)
        num_heads = redraw(subnet.num_heads, self.num_heads)
        width = _pick(self.embed_dim, rng) if rng.random() < shape_prob else subnet.embed_dim
        return Subnet(width, num_heads, mlp_ratio)

    def crossover(self, a: Subnet, b: Subnet, rng: np.random.Generator) -> Subnet:
        """Each gene from one of two parents of equal depth, at even odds."""
        if a.depth != b.depth:
            raise ValueError(f'parents differ in depth: {a.depth} and {b.depth}')

        def mix(genes_a, genes_b):
            return [_pick(pair, rng) for pair in zip(genes_a, genes_b, strict=True)]

        mlp_ratio = mix(a.mlp_ratio, b.mlp_ratio)
        num_heads = mix(a.num_heads, b.num_heads)
        return Subnet(_pick((a.embed_dim, b.embed_dim), rng), num_heads, mlp_ratio)

    def smallest(self) -> Subnet:
        """The subnet with the least of everything."""
        return self._extreme(min)

    def largest(self) -> Subnet:
        """The subnet with the most of everything."""
        return self._extreme(max)

    @property
    def size(self) -> int:
        """Number of distinct subnets."""
        per_block = len(self.num_heads) * len(self.mlp_ratio)
        return len(self.embed_dim) * sum(per_block**depth for depth in self.depth)

    def __contains__(self, subnet: Subnet) -> bool:
        return (
            subnet.embed_dim in self.embed_dim
            and subnet.depth in self.depth
            and set(subnet.num_heads) <= set(self.num_heads)
            and set(subnet.mlp_ratio) <= set(self.mlp_ratio)
        )

    def _extreme(self, choose) -> Subnet:
        depth = choose(self.depth)
        return Subnet(
            choose(self.embed_dim),
            (choose(self.num_heads),) * depth,
            (choose(self.mlp_ratio),) * depth,
        )


_FIELDS = tuple(SearchSpace.__dataclass_fields__)
_MOST_BLOCKS = 1000  # a subnet lists its blocks


def _pick(choices: Sequence, rng: np.random.Generator):
    return choices[rng.integers(len(choices))]
