from .elastic_cls_head import ElasticClsHead
from .grouping import ArchitectureGroups, ParamCountGroups, RandomGroups
from .router_head import (
    GRURouterHead,
    LSTMRouterHead,
    MLPRouterHead,
    Router,
    SingleExpertHead,
    group_wise_bias,
)

__all__ = [
    'ArchitectureGroups',
    'ElasticClsHead',
    'GRURouterHead',
    'LSTMRouterHead',
    'MLPRouterHead',
    'ParamCountGroups',
    'RandomGroups',
    'Router',
    'SingleExpertHead',
    'group_wise_bias',
]
