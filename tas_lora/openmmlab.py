"""MMEngine and MMPretrain learn the names of our configs and models.

MMEngine reads ``pkg::config`` only as a ``_base_``, only in a folder, and only of the packages in
a table of its own; MMPretrain lists the models of its own index. Neither asks other packages. So
each is told once it has been imported, and nothing is imported here.
"""

import sys
from collections.abc import Callable, Mapping
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from types import ModuleType

from .packaged import PREFIX, ROOT, find_config


class _AfterImport(MetaPathFinder):
    """Calls a function with a module right after it has been executed."""

    def __init__(self, actions: Mapping[str, Callable[[ModuleType], None]]):
        self._actions = actions

    def find_spec(self, fullname, path=None, target=None):
        """The usual spec; its loader calls the action, too."""
        action = self._actions.get(fullname)
        spec = PathFinder.find_spec(fullname, path, target) if action else None
        if spec is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            action(module)

        spec.loader.exec_module = exec_module
        return spec


def _teach_configs(module: ModuleType) -> None:
    """``tas_lora::NAME`` in ``Config.fromfile`` and in ``_base_``."""
    config = module.Config
    read, locate = config.fromfile, config._get_cfg_path

    def fromfile(filename, *args, **kwargs):
        if str(filename).startswith(PREFIX):
            filename = find_config(filename)
        return read(filename, *args, **kwargs)

    def _get_cfg_path(cfg_path, filename):
        if cfg_path.startswith(PREFIX):
            return str(find_config(cfg_path)), None  # our configs name each part with its scope
        return locate(cfg_path, filename)

    fromfile.__doc__ = read.__doc__
    config.fromfile, config._get_cfg_path = staticmethod(fromfile), staticmethod(_get_cfg_path)


def _teach_package(module: ModuleType) -> None:
    """The package in ``mmengine.hub``, which reads ``.mim`` of an installed one."""
    module.MODULE2PACKAGE['tas_lora'] = 'tas-lora'


def _teach_models(module: ModuleType) -> None:
    """The models of ``model-index.yml`` in ``get_model`` and ``list_models``."""
    module.ModelHub.register_model_index(ROOT / 'model-index.yml', config_prefix=ROOT)


_ACTIONS = {
    'mmengine.config.config': _teach_configs,
    'mmengine.config.utils': _teach_package,
    'mmpretrain.apis.model': _teach_models,
}


def register() -> None:
    """Tell those already imported now, the others as soon as they are."""
    for name, action in _ACTIONS.items():
        if name in sys.modules:
            action(sys.modules[name])
    if not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport(_ACTIONS))
