from .allocation import LAYER_KINDS, allocate, expert_sizes
from .attention import (
    ElasticAttention,
    RelativePosition2D,
    fused_relative_attention,
    relative_attention,
    relative_index,
    token_index,
)
from .block import ACTIVATIONS, ElasticBlock, compile_branches
from .elastic import ElasticLayerNorm, ElasticLinear, ElasticPatchEmbed, slice_weight
from .mole import (
    MoLELinear,
    expert_parameters,
    fold_gates,
    linear_factory,
    merge_experts,
    mole_linear,
    recomputed,
    unmerged,
)
from .patch_grid import PatchGrid, finest_positions
from .size_checks import check_supernet, check_weights, checked_patch_sizes

__all__ = [
    'ACTIVATIONS',
    'LAYER_KINDS',
    'ElasticAttention',
    'ElasticBlock',
    'ElasticLayerNorm',
    'ElasticLinear',
    'ElasticPatchEmbed',
    'MoLELinear',
    'PatchGrid',
    'RelativePosition2D',
    'allocate',
    'check_supernet',
    'check_weights',
    'checked_patch_sizes',
    'compile_branches',
    'expert_parameters',
    'expert_sizes',
    'finest_positions',
    'fold_gates',
    'fused_relative_attention',
    'linear_factory',
    'merge_experts',
    'mole_linear',
    'recomputed',
    'relative_attention',
    'relative_index',
    'slice_weight',
    'token_index',
    'unmerged',
]
