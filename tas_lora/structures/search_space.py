"""The choices a subnet is made of."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from ..checks import positives, within
from ..errors import UserError
from .subnet import Subnet


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """All subnets with one width, one depth, and heads and MLP ratio free in each block.

    Draws follow AutoFormer: ``embed_dim`` and ``depth`` once per subnet, ``mlp_ratio`` and
    ``num_heads`` once per block, each uniform over its choices; so is ``patch_size``, once per
    subnet, if it is given. Randomness comes in as a generator, so a draw is a function of its
    seed.

    Args:
        embed_dim: Choices of the width.
        depth: Choices of the number of blocks.
        num_heads: Choices of a block's attention heads.
        mlp_ratio: Choices of a block's MLP ratio.
        patch_size: Choices of the side of a patch in pixels; None leaves the supernet's own to
            all subnets, which then have none written down.

    Raises:
        UserError: If a field has no choice, a repeated one, or one that is no positive number, or
            a depth is above 1,000.
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
        self.smallest()  # refused if its MLP has no channel

    @staticmethod
    def field_names() -> tuple[str, ...]:
        """The choices that every space has."""
        return _FIELDS

    @classmethod
    def coerce(cls, value: 'SearchSpace | Mapping') -> 'SearchSpace':
        """``value`` itself if it is a search space, else one from its dict, called ``space``."""
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping) or not {*_FIELDS} <= {*value} <= {*_ALL_FIELDS}:
            raise UserError(
                f'must be a dict of exactly {_FIELDS}, and perhaps patch_size, got {value!r}',
                'space',
            )
        with within('space'):
            return cls(**value)

    def sample(self, rng: np.random.Generator) -> Subnet:
        """Uniform choices: depth, then MLP ratios, then heads, then width, then patches."""
        depth = _pick(self.depth, rng)
        mlp_ratio = [_pick(self.mlp_ratio, rng) for _ in range(depth)]
        num_heads = [_pick(self.num_heads, rng) for _ in range(depth)]
        width = _pick(self.embed_dim, rng)
        return Subnet(width, num_heads, mlp_ratio, self._pick_patch_size(rng))

    def sample_distinct(self, count: int, rng: np.random.Generator) -> list[Subnet]:
        """Different subnets by :meth:`sample`, repetitions left out.

        Raises:
            UserError: If the space has fewer.
        """
        if count > self.size:
            raise UserError(f'{count} distinct subnets of a space of {self.size}; ask for fewer')
        drawn = {}
        while len(drawn) < count:
            drawn[self.sample(rng)] = None
        return list(drawn)

    def mutate(
        self, subnet: Subnet, rng: np.random.Generator, gene_prob: float, shape_prob: float
    ) -> Subnet:
        """Redraw depth, width and patches with ``shape_prob``, a block's genes with ``gene_prob``.

        New blocks are drawn uniformly; a redraw may return the old value (AutoFormer).
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
        """Each gene from one of two parents of equal depth, at even odds."""
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
        """The subnet with the least of everything: of patches, too, which are then large."""
        return self._extreme(min, max)

    def largest(self) -> Subnet:
        """The subnet with the most of everything: of patches, too, which are then small."""
        return self._extreme(max, min)

    @property
    def size(self) -> int:
        """Number of distinct subnets."""
        per_block = len(self.num_heads) * len(self.mlp_ratio)
        shapes = len(self.embed_dim) * len(self.patch_size or (None,))
        return shapes * sum(per_block**depth for depth in self.depth)

    def __iter__(self) -> Iterator[Subnet]:
        """Every subnet once, of which there are :attr:`size`."""
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
_FIELDS = _ALL_FIELDS[:4]  # without patch_size, which most spaces leave out
_MOST_BLOCKS = 1000  # a subnet lists its blocks


def _pick(choices: Sequence, rng: np.random.Generator):
    return choices[rng.integers(len(choices))]
