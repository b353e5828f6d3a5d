from .images import InMemoryImages, shift_flip_collate
from .strategy import FixedSubnet

__all__ = ['FixedSubnet', 'InMemoryImages', 'shift_flip_collate']
