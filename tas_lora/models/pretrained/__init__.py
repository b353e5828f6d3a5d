from .build import convert, supernet_from

__all__ = ['convert', 'supernet_from']
