from .hooks import MoLEHook, MoLEStatsHook
from .optim import AutocastOptimWrapper, JointOptimWrapper, MoLEOptimWrapperConstructor
from .runner import (
    EvolutionarySearchLoop,
    SubnetSamplingTrainLoop,
    SubnetTestLoop,
    SubnetValLoop,
    SupernetRunner,
)

__all__ = [
    'AutocastOptimWrapper',
    'EvolutionarySearchLoop',
    'JointOptimWrapper',
    'MoLEHook',
    'MoLEOptimWrapperConstructor',
    'MoLEStatsHook',
    'SubnetSamplingTrainLoop',
    'SubnetTestLoop',
    'SubnetValLoop',
    'SupernetRunner',
]
