from ..renamed import renamed
from .card import model_card
from .formats import FORMATS, Format, find_formats
from .parity import ParityCheck, export_formats
from .source import Source

__all__ = [
    'FORMATS',
    'Format',
    'ParityCheck',
    'Source',
    'export_formats',
    'find_formats',
    'model_card',
]

__getattr__ = renamed(__name__, Outcome='ParityCheck')
