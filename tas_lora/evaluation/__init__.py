from .cross_entropy import CrossEntropy

__all__ = ['CrossEntropy']
