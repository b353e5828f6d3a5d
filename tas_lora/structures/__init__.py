from .search_space import SearchSpace
from .subnet import Subnet, read_subnet
from .vit_style import ViTStyle

__all__ = ['SearchSpace', 'Subnet', 'ViTStyle', 'read_subnet']
