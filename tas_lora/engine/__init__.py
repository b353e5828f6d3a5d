from .hooks import ComplexityAwareLRHook, MoLEHook, MoLEStatsHook, MomentumSeparationHook
from .optim import JointOptimWrapper, MoLEOptimWrapperConstructor, SupernetOptimWrapper
from .runner import (
    EvolutionarySearchLoop,
    SandwichRule,
    SubnetSamplingTrainLoop,
    SubnetTestLoop,
    SubnetValLoop,
    SupernetRunner,
    UniformSampling,
)

__all__ = [
    'ComplexityAwareLRHook',
    'EvolutionarySearchLoop',
    'JointOptimWrapper',
    'MoLEHook',
    'MoLEOptimWrapperConstructor',
    'MoLEStatsHook',
    'MomentumSeparationHook',
    'SandwichRule',
    'SubnetSamplingTrainLoop',
    'SubnetTestLoop',
    'SubnetValLoop',
    'SupernetOptimWrapper',
    'SupernetRunner',
    'UniformSampling',
]
