"""One architecture, as a value."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, nextafter
from pathlib import Path

from ..checks import positive, positives
from ..errors import UserError
from ..provenance import read_json

_ADVICE = (
    '; tools/search.py writes such files (best_subnet.json), and tools/export.py '
    '(architecture.json)'
)


@dataclass(frozen=True, slots=True, repr=False)
class Subnet:
    """Architecture of one vision transformer in the supernet's family.

    The same value describes a sampled subnet, the supernet's own size and an exported network.
    It is hashable, so it can be a cache key or a member of a set.

    Args:
        embed_dim: Width C of all blocks.
        num_heads: Attention heads of each block; its length is the depth.
        mlp_ratio: MLP width of each block divided by ``embed_dim``; as long as ``num_heads``.
        patch_size: Side of a patch in pixels, if the space has several; None for the
            supernet's own.

    Raises:
        UserError: If a field has the wrong type, length or sign.
    """

    embed_dim: int
    num_heads: tuple[int, ...]
    mlp_ratio: tuple[float, ...]
    patch_size: int | None = None

    def __post_init__(self):
        set_field = object.__setattr__  # how a frozen dataclass sets its fields
        set_field(self, 'embed_dim', positive(self.embed_dim, 'embed_dim', int))
        set_field(self, 'num_heads', positives(self.num_heads, 'num_heads', int))
        set_field(self, 'mlp_ratio', positives(self.mlp_ratio, 'mlp_ratio', float))
        if self.patch_size is not None:
            set_field(self, 'patch_size', positive(self.patch_size, 'patch_size', int))
        if len(self.num_heads) != len(self.mlp_ratio):
            raise UserError(
                f'num_heads has {len(self.num_heads)} blocks and mlp_ratio {len(self.mlp_ratio)}; '
                'give one value of each per block'
            )
        if min(self.hidden_dims) < 1:
            raise UserError(
                f'mlp_ratio {min(self.mlp_ratio)} leaves no MLP channel at embed_dim '
                f'{self.embed_dim}; raise one of them'
            )

    @property
    def depth(self) -> int:
        """Number of blocks L."""
        return len(self.num_heads)

    @property
    def hidden_dims(self) -> tuple[int, ...]:
        """MLP width of each block, ``int(embed_dim * mlp_ratio)`` (truncated, as in AutoFormer)."""
        return tuple(int(self.embed_dim * ratio) for ratio in self.mlp_ratio)

    def __repr__(self) -> str:
        fields = (name for name in _FIELDS if getattr(self, name) is not None)
        return f'Subnet({", ".join(f"{name}={getattr(self, name)!r}" for name in fields)})'

    def to_dict(self) -> dict:
        """Plain lists and numbers for JSON and configs; ``patch_size`` only if there is one."""
        own = {} if self.patch_size is None else dict(patch_size=self.patch_size)
        return dict(
            embed_dim=self.embed_dim,
            num_heads=list(self.num_heads),
            mlp_ratio=list(self.mlp_ratio),
            **own,
        )

    @classmethod
    def from_dict(cls, fields: Mapping) -> 'Subnet':
        """Inverse of :meth:`to_dict`; raises :class:`UserError` on unknown or missing fields."""
        if not isinstance(fields, Mapping):
            raise UserError(f'a subnet is a dict with {_FIELDS}, got {fields!r}')
        if not {*_FIELDS[:3]} <= set(fields) <= {*_FIELDS}:
            raise UserError(
                f'a subnet has exactly the fields {_FIELDS[:3]}, and optionally patch_size, '
                f'got {list(fields)}'
            )
        return cls(**fields)

    @classmethod
    def coerce(cls, value: 'Subnet | Mapping | str | Path') -> 'Subnet':
        """Return ``value`` if it is a subnet, else read one from its dict or JSON file.

        The dict may also be a record with a ``subnet``, as search and export write it.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, (str, Path)):
            value = read_json(value, 'subnet file', _ADVICE)
        if isinstance(value, Mapping) and 'subnet' in value:
            value = value['subnet']
        return cls.from_dict(value)

    def image_spec_in(self, spec: Mapping[str, int]) -> dict[str, int]:
        """``spec``, a supernet's image and patch sizes, with this subnet's patch size."""
        return dict(spec) | ({} if self.patch_size is None else dict(patch_size=self.patch_size))

    def check_fits(self, supernet: 'Subnet', what: str = 'subnet') -> None:
        """Raise :class:`UserError` unless this subnet is a slice of ``supernet``."""
        if self.embed_dim > supernet.embed_dim:
            _refuse(what, 'embed_dim', self.embed_dim, supernet.embed_dim)
        if self.depth > supernet.depth:
            _refuse(what, 'depth', self.depth, supernet.depth)
        for i, (heads, limit) in enumerate(zip(self.num_heads, supernet.num_heads, strict=False)):
            if heads > limit:
                _refuse(what, f'num_heads[{i}]', heads, limit)
        for i, (hidden, limit) in enumerate(
            zip(self.hidden_dims, supernet.hidden_dims, strict=False)
        ):
            if hidden > limit:
                _refuse(what, f'mlp_ratio[{i}]', f'{self.mlp_ratio[i]:g} ({hidden} wide)', limit)


def ratio_of(hidden: int, width: int) -> float:
    """The MLP ratio of which ``int(width * ratio)`` is ``hidden``."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else nextafter(ratio, inf)


def read_subnet(path: str | Path) -> Subnet:
    """Read a subnet from JSON: its dict, or a record of search or export with a ``subnet``."""
    return Subnet.coerce(Path(path))


_FIELDS = tuple(Subnet.__dataclass_fields__)


def _refuse(what: str, field: str, value, limit) -> None:
    raise UserError(
        f'{what} does not fit: {field} is {value}, the supernet has {limit}; '
        'choose a smaller one or a larger supernet (arch)'
    )
