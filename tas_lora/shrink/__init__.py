from .request import Request
from .stages import shrink

__all__ = ['Request', 'shrink']
