from .search_space import SearchSpace
from .subnet import Subnet, ratio_of, read_subnet
from .vit_style import ViTStyle

__all__ = ['SearchSpace', 'Subnet', 'ViTStyle', 'ratio_of', 'read_subnet']
