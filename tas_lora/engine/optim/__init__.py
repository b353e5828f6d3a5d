from .autoformer_lr import AutoFormerLR
from .joint import JointOptimWrapper, MoLEOptimWrapperConstructor
from .layer_decay import HeadLayerDecay
from .supernet_optim import SupernetOptimWrapper

__all__ = [
    'AutoFormerLR',
    'HeadLayerDecay',
    'JointOptimWrapper',
    'MoLEOptimWrapperConstructor',
    'SupernetOptimWrapper',
]
