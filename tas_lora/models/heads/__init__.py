from .elastic_cls_head import ElasticClsHead
from .lstm_router_head import LSTMRouterHead, group_wise_bias

__all__ = ['ElasticClsHead', 'LSTMRouterHead', 'group_wise_bias']
