from .complexity import count_flops, count_params
from .evolution import Evolution

__all__ = ['Evolution', 'count_flops', 'count_params']
