"""Registries of this toolkit: children of MMEngine's, with the scope ``tas_lora``.

A config names our parts as ``type='tas_lora.X'``. MMEngine then imports this module and the
packages in ``locations``, so no ``custom_imports`` are needed.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import wraps

from mmengine import registry as mmengine_registry
from mmengine.registry import Registry

from .checks import of_part
from .errors import UserError


class _Registry(Registry):
    """MMEngine's registry; error messages of its classes begin with the class name."""

    def register_module(self, name=None, force=False, module=None):
        """Register as in MMEngine."""
        if module is None:
            return lambda module: self.register_module(name, force, module)
        if inspect.isclass(module):
            module.__init__ = _naming(module.__init__)
        return super().register_module(name, force, module)


def _naming(init: Callable) -> Callable:
    @wraps(init)
    def naming(self, *args, **kwargs):
        with of_part(type(self).__name__):
            init(self, *args, **kwargs)

    return naming


def _child(parent: Registry, *locations: str) -> Registry:
    return _Registry(parent.name, parent=parent, scope='tas_lora', locations=list(locations))


def build_part(registry: Registry, config: Mapping, kind: type, field: str, **defaults):
    """Build a component from its config.

    Args:
        registry: Where it is registered.
        config: Its config.
        kind: Required base class.
        field: Name of the argument that holds it, for the message.
        **defaults: Arguments for those missing from ``config``.

    Raises:
        UserError: If it does not exist or is of another kind; names those to choose from.
    """
    part = registry.get(str(config.get('type'))) if isinstance(config, Mapping) else None
    if not (inspect.isclass(part) and issubclass(part, kind)):
        known = sorted(
            f"dict(type='tas_lora.{name}')"
            for name, other in registry.module_dict.items()
            if inspect.isclass(other) and issubclass(other, kind)
        )
        raise UserError(f'cannot be {config!r}; choose from {", ".join(known)}', field)
    return part(**defaults | {key: value for key, value in config.items() if key != 'type'})


MODELS = _child(mmengine_registry.MODELS, 'tas_lora.models')
TASK_UTILS = _child(
    mmengine_registry.TASK_UTILS, 'tas_lora.models', 'tas_lora.ordering', 'tas_lora.engine'
)
HOOKS = _child(mmengine_registry.HOOKS, 'tas_lora.engine')
LOOPS = _child(mmengine_registry.LOOPS, 'tas_lora.engine')
PARAM_SCHEDULERS = _child(mmengine_registry.PARAM_SCHEDULERS, 'tas_lora.engine')
OPTIM_WRAPPERS = _child(mmengine_registry.OPTIM_WRAPPERS, 'tas_lora.engine')
OPTIM_WRAPPER_CONSTRUCTORS = _child(mmengine_registry.OPTIM_WRAPPER_CONSTRUCTORS, 'tas_lora.engine')
DATASETS = _child(mmengine_registry.DATASETS, 'tas_lora.datasets')
DATA_SAMPLERS = _child(mmengine_registry.DATA_SAMPLERS, 'tas_lora.datasets')
METRICS = _child(mmengine_registry.METRICS, 'tas_lora.evaluation')
