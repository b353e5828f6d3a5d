"""Registries of this toolkit: children of MMEngine's, with the scope ``tas_lora``.

A config names our parts as ``type='tas_lora.X'``. MMEngine then imports this module and, through
``locations``, the packages below, so that no ``custom_imports`` is needed.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import wraps

from mmengine.registry import DATA_SAMPLERS as MMENGINE_DATA_SAMPLERS
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import LOOPS as MMENGINE_LOOPS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS
from mmengine.registry import PARAM_SCHEDULERS as MMENGINE_PARAM_SCHEDULERS
from mmengine.registry import TASK_UTILS as MMENGINE_TASK_UTILS
from mmengine.registry import Registry

from .checks import of_part
from .errors import UserError


class _Registry(Registry):
    """MMEngine's; what its classes refuse begins with their name, whoever builds them."""

    def register_module(self, name=None, force=False, module=None):
        """As in MMEngine."""
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
    """Build the component of a config that must be a ``kind``.

    Args:
        registry: Where it is registered.
        config: Its config.
        kind: What it must be a subclass of.
        field: The argument that it is, for the message.
        **defaults: Arguments used where ``config`` has none.

    Raises:
        UserError: If it does not exist or is something else, naming those that exist.
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


MODELS = _child(MMENGINE_MODELS, 'tas_lora.models')
TASK_UTILS = _child(MMENGINE_TASK_UTILS, 'tas_lora.models', 'tas_lora.engine')
HOOKS = _child(MMENGINE_HOOKS, 'tas_lora.engine')
LOOPS = _child(MMENGINE_LOOPS, 'tas_lora.engine')
PARAM_SCHEDULERS = _child(MMENGINE_PARAM_SCHEDULERS, 'tas_lora.engine')
OPTIM_WRAPPERS = _child(MMENGINE_OPTIM_WRAPPERS, 'tas_lora.engine')
OPTIM_WRAPPER_CONSTRUCTORS = _child(MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS, 'tas_lora.engine')
DATASETS = _child(MMENGINE_DATASETS, 'tas_lora.datasets')
DATA_SAMPLERS = _child(MMENGINE_DATA_SAMPLERS, 'tas_lora.datasets')
METRICS = _child(MMENGINE_METRICS, 'tas_lora.evaluation')
