"""Registries of this project: children of MMEngine's, with the scope ``nas_lora``.

A config names our parts as ``type='nas_lora.X'``, after
``custom_imports = dict(imports=['nas_lora'])``.
"""

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import LOOPS as MMENGINE_LOOPS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS
from mmengine.registry import RUNNERS as MMENGINE_RUNNERS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import Registry


def _child(parent: Registry) -> Registry:
    return Registry(parent.name, parent=parent, scope='nas_lora', locations=['nas_lora'])


MODELS = _child(MMENGINE_MODELS)
HOOKS = _child(MMENGINE_HOOKS)
LOOPS = _child(MMENGINE_LOOPS)
OPTIM_WRAPPERS = _child(MMENGINE_OPTIM_WRAPPERS)
OPTIM_WRAPPER_CONSTRUCTORS = _child(MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS)
DATASETS = _child(MMENGINE_DATASETS)
TRANSFORMS = _child(MMENGINE_TRANSFORMS)
METRICS = _child(MMENGINE_METRICS)
RUNNERS = _child(MMENGINE_RUNNERS)
