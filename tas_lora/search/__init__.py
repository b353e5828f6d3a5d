from .complexity import count_flops, count_params
from .evolution import Evolution
from .history import History, open_history, read_history
from .limits import Limits

__all__ = [
    'Evolution',
    'History',
    'Limits',
    'count_flops',
    'count_params',
    'open_history',
    'read_history',
]
