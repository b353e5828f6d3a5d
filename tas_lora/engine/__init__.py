from .hooks import (
    CompileWarmupHook,
    ComplexityAwareLRHook,
    LateInfoHook,
    MoLEHook,
    MoLEStatsHook,
    MomentumSeparationHook,
    SafeCheckpointHook,
    SimilarityHook,
)
from .optim import (
    JointOptimWrapper,
    MoLEOptimWrapperConstructor,
    SupernetOptimWrapper,
)
from .runner import (
    ParentDistillation,
    ResumableTrainLoop,
    SandwichRule,
    SubnetSamplingTrainLoop,
    SubnetTestLoop,
    SubnetValLoop,
    SupernetRunner,
    UniformSampling,
)
from .search import EvolutionarySearchLoop

__all__ = [
    'CompileWarmupHook',
    'ComplexityAwareLRHook',
    'EvolutionarySearchLoop',
    'JointOptimWrapper',
    'LateInfoHook',
    'MoLEHook',
    'MoLEOptimWrapperConstructor',
    'MoLEStatsHook',
    'MomentumSeparationHook',
    'ParentDistillation',
    'ResumableTrainLoop',
    'SafeCheckpointHook',
    'SandwichRule',
    'SimilarityHook',
    'SubnetSamplingTrainLoop',
    'SubnetTestLoop',
    'SubnetValLoop',
    'SupernetOptimWrapper',
    'SupernetRunner',
    'UniformSampling',
]
