"""Registration of our configs and models with MMEngine and MMPretrain.

MMEngine reads ``pkg::config`` only as a ``_base_``, only in a folder, and only for the packages in
its own table; MMPretrain lists only the models of its own index. Neither asks other packages. So
we register with each when it is imported, and import neither here.
"""

import sys
from collections.abc import Callable, Mapping
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from types import ModuleType

from .packaged import PREFIX, ROOT, find_config


class _AfterImport(MetaPathFinder):
    """Calls a function with a module right after its execution."""

    def __init__(self, actions: Mapping[str, Callable[[ModuleType], None]]):
        self._actions = actions

    def find_spec(self, fullname, path=None, target=None):
        """The usual spec, whose loader also calls the action."""
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
    """Accept ``tas_lora::NAME`` in ``Config.fromfile`` and in ``_base_``."""
    config = module.Config
    read, locate = config.fromfile, config._get_cfg_path

    def fromfile(filename, *args, **kwargs):
        if str(filename).startswith(PREFIX):
            filename = find_config(filename)
        return read(filename, *args, **kwargs)

    def _get_cfg_path(cfg_path, filename):
        if cfg_path.startswith(PREFIX):
            return str(find_config(cfg_path)), None  # our configs give each part's scope
        return locate(cfg_path, filename)

    fromfile.__doc__ = read.__doc__
    config.fromfile, config._get_cfg_path = staticmethod(fromfile), staticmethod(_get_cfg_path)


def _teach_package(module: ModuleType) -> None:
    """Add the package to ``mmengine.hub``, which reads ``.mim`` of installed packages."""
    module.MODULE2PACKAGE['tas_lora'] = 'tas-lora'


def _teach_models(module: ModuleType) -> None:
    """Add the models of ``model-index.yml`` to ``get_model`` and ``list_models``."""
    module.ModelHub.register_model_index(ROOT / 'model-index.yml', config_prefix=ROOT)


_ACTIONS = {
    'mmengine.config.config': _teach_configs,
    'mmengine.config.utils': _teach_package,
    'mmpretrain.apis.model': _teach_models,
}


def register() -> None:
    """Register with packages already imported, and with the others upon their import."""
    for name, action in _ACTIONS.items():
        if name in sys.modules:
            action(sys.modules[name])
    if not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport(_ACTIONS))
