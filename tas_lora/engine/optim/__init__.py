from .autocast import AutocastOptimWrapper
from .joint import JointOptimWrapper, MoLEOptimWrapperConstructor

__all__ = ['AutocastOptimWrapper', 'JointOptimWrapper', 'MoLEOptimWrapperConstructor']
