from .card import model_card
from .formats import FORMATS, Format, find_formats
from .parity import ParityCheck, __getattr__, export_formats  # __getattr__: Outcome of 0.1
from .source import Source

__all__ = [
    'FORMATS',
    'Format',
    'ParityCheck',
    'Source',
    'export_formats',
    'find_formats',
    'model_card',
    '__getattr__',
]
