from .data_preprocessor import SupernetDataPreprocessor
from .supernet_classifier import SupernetClassifier

__all__ = ['SupernetClassifier', 'SupernetDataPreprocessor']
