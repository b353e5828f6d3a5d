from .build import convert, model_config_of, supernet_from
from .files import write_supernet

__all__ = ['convert', 'model_config_of', 'supernet_from', 'write_supernet']
