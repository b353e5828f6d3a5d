from .attention import ElasticAttention, RelativePosition2D, relative_attention, relative_index
from .elastic import ElasticLayerNorm, ElasticLinear, ElasticPatchEmbed, slice_weight
from .mole import (
    LAYER_KINDS,
    MoLELinear,
    expert_parameters,
    linear_factory,
    merge_experts,
    mole_linear,
)

__all__ = [
    'LAYER_KINDS',
    'ElasticAttention',
    'ElasticLayerNorm',
    'ElasticLinear',
    'ElasticPatchEmbed',
    'MoLELinear',
    'RelativePosition2D',
    'expert_parameters',
    'linear_factory',
    'merge_experts',
    'mole_linear',
    'relative_attention',
    'relative_index',
    'slice_weight',
]
