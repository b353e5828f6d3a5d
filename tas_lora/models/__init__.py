from .backbones import ElasticViT
from .classifiers import SupernetClassifier
from .export import export_subnet
from .heads import ElasticClsHead, LSTMRouterHead
from .load import load_supernet
from .pretrained import supernet_from

__all__ = [
    'ElasticClsHead',
    'ElasticViT',
    'LSTMRouterHead',
    'SupernetClassifier',
    'export_subnet',
    'load_supernet',
    'supernet_from',
]
