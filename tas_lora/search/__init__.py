from .complexity import count_flops, count_params
from .evolution import Evolution
from .history import read_history

__all__ = ['Evolution', 'count_flops', 'count_params', 'read_history']
