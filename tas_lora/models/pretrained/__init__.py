from .build import convert, model_config_of, supernet_from

__all__ = ['convert', 'model_config_of', 'supernet_from']
