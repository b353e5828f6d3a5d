from .compile_warmup_hook import CompileWarmupHook
from .dynas_hooks import ComplexityAwareLRHook, MomentumSeparationHook
from .late_info_hook import LateInfoHook
from .mole_hook import MoLEHook
from .mole_stats_hook import MoLEStatsHook
from .safe_checkpoint_hook import SafeCheckpointHook
from .similarity_hook import SimilarityHook

__all__ = [
    'CompileWarmupHook',
    'ComplexityAwareLRHook',
    'LateInfoHook',
    'MoLEHook',
    'MoLEStatsHook',
    'MomentumSeparationHook',
    'SafeCheckpointHook',
    'SimilarityHook',
]
