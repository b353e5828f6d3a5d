from .card import model_card
from .formats import FORMATS, Format, find_formats
from .parity import Outcome, export_formats
from .source import Source

__all__ = [
    'FORMATS',
    'Format',
    'Outcome',
    'Source',
    'export_formats',
    'find_formats',
    'model_card',
]
