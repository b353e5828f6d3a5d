from .search_space import SearchSpace
from .subnet import Subnet, read_subnet

__all__ = ['SearchSpace', 'Subnet', 'read_subnet']
