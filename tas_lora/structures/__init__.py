from .search_space import SearchSpace
from .subnet import Subnet

__all__ = ['SearchSpace', 'Subnet']
