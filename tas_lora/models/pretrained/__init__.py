from .build import convert, supernet_from
from .files import write_supernet

__all__ = ['convert', 'supernet_from', 'write_supernet']
