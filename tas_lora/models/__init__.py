from .backbones import ElasticViT
from .classifiers import SupernetClassifier
from .export import export_subnet
from .heads import ElasticClsHead, LSTMRouterHead

__all__ = [
    'ElasticClsHead',
    'ElasticViT',
    'LSTMRouterHead',
    'SupernetClassifier',
    'export_subnet',
]
