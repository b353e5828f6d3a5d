from .attention import ElasticAttention, RelativePosition2D, relative_attention, relative_index
from .elastic import ElasticLayerNorm, ElasticLinear, ElasticPatchEmbed, slice_weight
from .mole import MoLELinear, expert_parameters, merge_experts, mole_linear

__all__ = [
    'ElasticAttention',
    'ElasticLayerNorm',
    'ElasticLinear',
    'ElasticPatchEmbed',
    'MoLELinear',
    'RelativePosition2D',
    'expert_parameters',
    'merge_experts',
    'mole_linear',
    'relative_attention',
    'relative_index',
    'slice_weight',
]
