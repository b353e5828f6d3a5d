from .build import convert, open_model, supernet_from
from .files import write_supernet

__all__ = ['convert', 'open_model', 'supernet_from', 'write_supernet']
