"""The search space: the choices that make up a subnet."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from ..checks import positives, within
from ..errors import UserError
from .subnet import Subnet


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """All subnets whose width and depth, and whose heads and MLP ratio per block, are choices.

    As in AutoFormer, ``embed_dim`` and ``depth`` are drawn once per subnet, ``mlp_ratio`` and
    ``num_heads`` once per block, each uniformly over its choices. ``patch_size``, if given, is
    drawn once per subnet. The caller passes the generator, so a draw depends only on its seed.

    Args:
        embed_dim: Choices of the width.
        depth: Choices of the number of blocks.
        num_heads: Choices of a block's attention heads.
        mlp_ratio: Choices of a block's MLP ratio.
        patch_size: Choices of the side of a patch in pixels. None: all subnets use the supernet's
            own and do not record it.

    Raises:
        UserError: If a field has no choices, a repeated one, or one that is not a positive number,
            or if a depth is above 1,000.
    """

    embed_dim: tuple[int, ...]
    depth: tuple[int, ...]
    num_heads: tuple[int, ...]
    mlp_ratio: tuple[float, ...]
    patch_size: tuple[int, ...] | None = None

    def __post_init__(self):
        for name in _FIELDS if self.patch_size is None else _ALL_FIELDS:
            kind = float if name == 'mlp_ratio' else int
            choices = positives(getattr(self, name), name, kind)
            if len(set(choices)) < len(choices):
                raise UserError(f'repeats a choice: {list(choices)}', name)
            if name == 'depth' and max(choices) > _MOST_BLOCKS:
                raise UserError(f'must be at most {_MOST_BLOCKS:,}, got {max(choices)}', name)
            object.__setattr__(self, name, choices)
        self.smallest()  # raises if its MLP has no channel

    @staticmethod
    def field_names() -> tuple[str, ...]:
        """Names of the fields that every space has."""
        return _FIELDS

    @classmethod
    def coerce(cls, value: 'SearchSpace | Mapping') -> 'SearchSpace':
        """Return ``value`` if it is a search space, else build one from its dict."""
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping) or not {*_FIELDS} <= {*value} <= {*_ALL_FIELDS}:
            raise UserError(
                f'must be a dict of exactly {_FIELDS}, and optionally patch_size, got {value!r}',
                'space',
            )
        with within('space'):
            return cls(**value)

    def sample(self, rng: np.random.Generator) -> Subnet:
        """Draw a subnet: depth, MLP ratios, heads, width and patch size, in this order."""
        depth = _pick(self.depth, rng)
        mlp_ratio = [_pick(self.mlp_ratio, rng) for _ in range(depth)]
        num_heads = [_pick(self.num_heads, rng) for _ in range(depth)]
        width = _pick(self.embed_dim, rng)
        return Subnet(width, num_heads, mlp_ratio, self._pick_patch_size(rng))

    def sample_distinct(self, count: int, rng: np.random.Generator) -> list[Subnet]:
        """Draw ``count`` different subnets by :meth:`sample`, skipping repeats.

        Raises:
            UserError: If the space has fewer.
        """
        if count > self.size:
            raise UserError(f'no {count} distinct subnets of a space of {self.size}; ask for fewer')
        drawn = {}
        while len(drawn) < count:
            drawn[self.sample(rng)] = None
        return list(drawn)

    def mutate(
        self, subnet: Subnet, rng: np.random.Generator, gene_prob: float, shape_prob: float
    ) -> Subnet:
        """Redraw depth, width, patch size with ``shape_prob``, a block's genes with ``gene_prob``.

        New blocks are drawn uniformly. A redraw may return the old value, as in AutoFormer.
        """
        depth = _pick(self.depth, rng) if rng.random() < shape_prob else subnet.depth

        def redraw(genes, choices):
            genes = [*genes[:depth], *(_pick(choices, rng) for _ in range(depth - len(genes)))]
            return [_pick(choices, rng) if rng.random() < gene_prob else g for g in genes]

        mlp_ratio = redraw(subnet.mlp_ratio, self.mlp_ratio)
        num_heads = redraw(subnet.num_heads, self.num_heads)
        width = _pick(self.embed_dim, rng) if rng.random() < shape_prob else subnet.embed_dim
        patch_size = subnet.patch_size
        if self.patch_size and rng.random() < shape_prob:
            patch_size = self._pick_patch_size(rng)
        return Subnet(width, num_heads, mlp_ratio, patch_size)

    def crossover(self, a: Subnet, b: Subnet, rng: np.random.Generator) -> Subnet:
        """Take each gene from either of two parents of equal depth, with equal probability."""
        if a.depth != b.depth:
            raise ValueError(f'parents differ in depth: {a.depth} and {b.depth}')

        def mix(genes_a, genes_b):
            return [_pick(pair, rng) for pair in zip(genes_a, genes_b, strict=True)]

        mlp_ratio = mix(a.mlp_ratio, b.mlp_ratio)
        num_heads = mix(a.num_heads, b.num_heads)
        width = _pick((a.embed_dim, b.embed_dim), rng)
        patch_size = _pick((a.patch_size, b.patch_size), rng) if self.patch_size else None
        return Subnet(width, num_heads, mlp_ratio, patch_size)

    def smallest(self) -> Subnet:
        """The subnet with the least of everything, patches included, so these are the largest."""
        return self._extreme(min, max)

    def largest(self) -> Subnet:
        """The subnet with the most of everything, patches included, so these are the smallest."""
        return self._extreme(max, min)

    @property
    def size(self) -> int:
        """Number of distinct subnets."""
        per_block = len(self.num_heads) * len(self.mlp_ratio)
        shapes = len(self.embed_dim) * len(self.patch_size or (None,))
        return shapes * sum(per_block**depth for depth in self.depth)

    def __iter__(self) -> Iterator[Subnet]:
        """Yield every subnet once, :attr:`size` in all."""
        shapes = product(self.embed_dim, self.patch_size or (None,), self.depth)
        for width, patch_size, depth in shapes:
            genes = (product(choices, repeat=depth) for choices in (self.num_heads, self.mlp_ratio))
            for num_heads, mlp_ratio in product(*genes):
                yield Subnet(width, num_heads, mlp_ratio, patch_size)

    def __contains__(self, subnet: Subnet) -> bool:
        return (
            subnet.embed_dim in self.embed_dim
            and subnet.depth in self.depth
            and set(subnet.num_heads) <= set(self.num_heads)
            and set(subnet.mlp_ratio) <= set(self.mlp_ratio)
            and subnet.patch_size in (self.patch_size or (None,))
        )

    def _pick_patch_size(self, rng: np.random.Generator) -> int | None:
        return _pick(self.patch_size, rng) if self.patch_size else None

    def _extreme(self, choose, choose_patch_size) -> Subnet:
        depth = choose(self.depth)
        return Subnet(
            choose(self.embed_dim),
            (choose(self.num_heads),) * depth,
            (choose(self.mlp_ratio),) * depth,
            choose_patch_size(self.patch_size) if self.patch_size else None,
        )


_ALL_FIELDS = tuple(SearchSpace.__dataclass_fields__)
_FIELDS = _ALL_FIELDS[:4]  # without patch_size, which most spaces omit
_MOST_BLOCKS = 1000  # a subnet lists its blocks


def _pick(choices: Sequence, rng: np.random.Generator):
    return choices[rng.integers(len(choices))]
