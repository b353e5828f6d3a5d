"""What a family of vision transformers has in common, other than sizes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite

from ..checks import boolean, natural, one_of, positive, within
from ..errors import UserError

ACTIVATIONS = ('gelu', 'gelu_tanh', 'quick_gelu')
FINAL_NORMS = ('tokens', 'pooled', 'none')


@dataclass(frozen=True, slots=True)
class ViTStyle:
    """How the networks of a family are built; the defaults are AutoFormer's.

    Args:
        num_prefix_tokens: Learned tokens P before those of the patches: a class token, which is the
            first, and registers.
        prefix_positions: Whether the position embedding has rows for these tokens also.
        pre_norm: Whether a LayerNorm precedes the first block (CLIP).
        final_norm: Where the last LayerNorm is: over 'tokens'; over the 'pooled' feature (timm's
            ``fc_norm``); or 'none'.
        norm_eps: Epsilon of all LayerNorms.
        act: Activation of the MLPs: 'gelu'; 'gelu_tanh', its approximation by tanh; or
            'quick_gelu', x sigmoid(1.702 x) (CLIP).
        layer_scale: Initial value of a factor per channel on the output of each branch
            (LayerScale: DINOv2, DeiT-III). None: no factors.
        qkv_bias_by_part: Slice the biases of query, key and value each for itself, as pretrained
            networks need. False: the first 3 H D of one vector, as in AutoFormer.

    Raises:
        UserError: If a field is not one of these.
    """

    num_prefix_tokens: int = 1
    prefix_positions: bool = True
    pre_norm: bool = False
    final_norm: str = 'tokens'
    norm_eps: float = 1e-5
    act: str = 'gelu'
    layer_scale: float | None = None
    qkv_bias_by_part: bool = False

    def __post_init__(self):
        natural(self.num_prefix_tokens, 'num_prefix_tokens', most=1000)
        for name in ('prefix_positions', 'pre_norm', 'qkv_bias_by_part'):
            boolean(getattr(self, name), name)
        one_of(self.final_norm, 'final_norm', FINAL_NORMS)
        one_of(self.act, 'act', ACTIVATIONS)
        positive(self.norm_eps, 'norm_eps', float)
        if self.layer_scale is not None and not _is_number(self.layer_scale):
            raise UserError(f'must be a number or None, got {self.layer_scale!r}', 'layer_scale')

    @classmethod
    def coerce(cls, value: 'ViTStyle | Mapping | None') -> 'ViTStyle':
        """Return ``value`` if it is a style, else build one from its dict; None is AutoFormer's."""
        if isinstance(value, cls):
            return value
        value = {} if value is None else value
        fields = tuple(cls.__dataclass_fields__)
        if not isinstance(value, Mapping) or not set(value) <= set(fields):
            raise UserError(f'must be a dict of some of {fields}, got {value!r}', 'style')
        with within('style'):
            return cls(**value)

    def to_dict(self) -> dict:
        """All fields, for JSON and configs."""
        return asdict(self)


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)
