from .autocast import AutocastOptimWrapper
from .autoformer_lr import AutoFormerLR
from .joint import JointOptimWrapper, MoLEOptimWrapperConstructor

__all__ = [
    'AutoFormerLR',
    'AutocastOptimWrapper',
    'JointOptimWrapper',
    'MoLEOptimWrapperConstructor',
]
