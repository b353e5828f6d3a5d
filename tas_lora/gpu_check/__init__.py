from .page import write_page
from .parts import PARTS
from .runs import Setting, run_parts

__all__ = ['PARTS', 'Setting', 'run_parts', 'write_page']
