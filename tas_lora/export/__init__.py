from .card import model_card
from .formats import FORMATS, Format, find_formats
from .parity import ParityCheck, __getattr__, export_formats  # which knows the old name, Outcome
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
