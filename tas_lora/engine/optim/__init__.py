from .autoformer_lr import AutoFormerLR
from .joint import JointOptimWrapper, MoLEOptimWrapperConstructor
from .supernet_optim import SupernetOptimWrapper

__all__ = [
    'AutoFormerLR',
    'JointOptimWrapper',
    'MoLEOptimWrapperConstructor',
    'SupernetOptimWrapper',
]
