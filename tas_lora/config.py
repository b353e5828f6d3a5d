"""Reading a config, and finding mistakes in it before anything is built."""

import difflib
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import (
    DATASETS,
    HOOKS,
    LOOPS,
    METRICS,
    MODELS,
    TASK_UTILS,
    TRANSFORMS,
    Registry,
    init_default_scope,
)
from mmengine.runner import Runner

from .checks import natural, positive
from .errors import UserError, blame
from .image_formats import restrict_pillow
from .packaged import find_config

_REGISTRIES = dict(
    model=MODELS,
    train_cfg=LOOPS,
    val_cfg=LOOPS,
    test_cfg=LOOPS,
    default_hooks=HOOKS,
    custom_hooks=HOOKS,
    train_dataloader=DATASETS,
    val_dataloader=DATASETS,
    test_dataloader=DATASETS,
    val_evaluator=METRICS,
    test_evaluator=METRICS,
)
_RUNNER = inspect.signature(Runner.__init__).parameters
# A config has one optimizer wrapper, often without a type.
_OPTIM_WRAPPERS = ('SupernetOptimWrapper', 'JointOptimWrapper', 'MoLEOptimWrapperConstructor')
# Keys that MMEngine removes before it calls a constructor.
_CONSUMED = {'type', '_scope_', 'priority'}


def load_config(path: str | Path, options: dict | None = None) -> Config:
    """Read a config, apply ``--cfg-options``, and refuse unknown arguments.

    ``path`` is a file or the name of a packaged config.
    """
    path = find_config(path)
    with blame(f'config {path} cannot be read'):
        cfg = Config.fromfile(path)
    if 'model' not in cfg:
        raise UserError(f'config {path} has no model; files in _base_ are only parts of configs')
    return checked_config(cfg, options)


def checked_config(cfg: Config, options: dict | None = None) -> Config:
    """Apply ``--cfg-options`` to a config, and refuse unknown arguments."""
    restrict_pillow()
    known = [*cfg.keys(), *_RUNNER]
    for key in options or {}:
        first = key.split('.')[0]
        if first not in known:
            raise UserError(
                f'--cfg-options {key}: the config has no {first!r}{_hint(first, known)}'
            )
    with blame('--cfg-options do not fit the config'):
        cfg.merge_from_dict(options or {})
    check_names(cfg)
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    for field, registry in _REGISTRIES.items():
        for path, node in _typed(cfg.get(field), field):
            check_arguments(path, node, TRANSFORMS if 'pipeline' in path else registry)
    check_numbers(cfg)
    return cfg


def check_names(cfg: Config) -> None:
    """Refuse top-level names that look like a misspelt argument of the runner.

    Other unknown names are variables of the config.
    """
    for name in cfg:
        if name not in _RUNNER:
            close = difflib.get_close_matches(name, _RUNNER, n=1, cutoff=0.88)
            if close and close[0] not in cfg:
                raise UserError(f'the config sets {name!r}; did you mean {close[0]!r}?')


def check_arguments(path: str, node: dict, registry: Registry) -> None:
    """Refuse arguments of ``node`` that the component named by its ``type`` does not accept."""
    names = (f'{node["type"]}', f'mmpretrain.{node["type"]}')
    # Strategies and groupings occur inside other components.
    component = next(filter(None, (r.get(n) for r in (registry, TASK_UTILS) for n in names)), None)
    accepted = _accepted_arguments(component)
    for key in node if accepted is not None else ():
        if key not in accepted and key not in _CONSUMED:
            raise UserError(
                f'{path}.{key}: {node["type"]} takes no such argument{_hint(key, accepted)}; '
                f'it takes {", ".join(sorted(accepted))}'
            )


def check_numbers(cfg: Config) -> None:
    """Refuse numbers that MMEngine accepts, but that make it fail in the middle of a run."""
    train, hooks = cfg.get('train_cfg') or {}, cfg.get('default_hooks') or {}
    _check_number(train, 'train_cfg', 'val_interval', positive, int)
    checkpoint = hooks.get('checkpoint') or {}
    if checkpoint.get('interval') != -1:  # never, except for the last checkpoint
        _check_number(checkpoint, 'default_hooks.checkpoint', 'interval', positive, int)
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        _check_number(cfg.get(loader), loader, 'batch_size', positive, int)
        _check_number(cfg.get(loader), loader, 'num_workers', natural)


def check_data(cfg: Config, loaders: tuple[str, ...]) -> None:
    """Refuse missing data folders, before a dataset class tries to download them."""
    for loader in loaders:
        for path, node in _dicts(cfg.get(loader), loader):
            root = node.get('data_root')
            if isinstance(root, str) and not Path(root).is_dir():
                raise UserError(
                    f'{path}.data_root: there is no folder {root!r}; put the data there '
                    f'or point to it by --cfg-options {path}.data_root=DIR'
                )


@contextmanager
def addressed(cfg: Config | dict) -> Iterator[None]:
    """In errors, replace the class of the part at fault by its path in ``cfg``.

    Among several parts of one class, choose one that has the value in the message; if none has,
    keep the class.
    """
    try:
        yield
    except UserError as error:
        typed = (pair for field in _RUNNER for pair in _typed(cfg.get(field), field))
        parts = [(path, node) for path, node in typed if node['type'].split('.')[-1] == error.part]
        if len(parts) > 1:
            parts = [(path, node) for path, node in parts if _shows(error, node)]
        if parts or error.part in _OPTIM_WRAPPERS:
            error.part = parts[0][0] if parts else 'optim_wrapper'
        raise


def _shows(error: UserError, part: dict) -> bool:
    """Whether the message shows the value that ``part`` has in the field."""
    value = re.escape(repr(part.get(error.field)))
    return error.field in part and bool(re.search(f'(got|is) {value}([,;:]|$)', error.message))


def _check_number(node, path: str, key: str, check: Callable, *kind) -> None:
    if isinstance(node, dict) and key in node:
        check(node[key], f'{path}.{key}', *kind)


def _accepted_arguments(component) -> set[str] | None:
    """Argument names of a component, following ``**kwargs`` up its bases; None for any."""
    if inspect.isfunction(component):
        return set(inspect.signature(component).parameters)
    if not inspect.isclass(component):
        return None
    accepted = set()
    for cls in component.__mro__:
        if '__init__' not in vars(cls) or cls is object:
            continue
        parameters = inspect.signature(cls.__init__).parameters.values()
        accepted |= {p.name for p in parameters if p.kind is not p.VAR_KEYWORD} - {'self'}
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            return accepted
    return None


def _typed(node, path: str) -> Iterator[tuple[str, dict]]:
    return ((p, d) for p, d in _dicts(node, path) if isinstance(d.get('type'), str))


def _dicts(node, path: str) -> Iterator[tuple[str, dict]]:
    """All dicts below ``node`` with their dotted paths, outermost first."""
    if isinstance(node, dict):
        yield path, node
        for key, value in node.items():
            yield from _dicts(value, f'{path}.{key}')
    elif isinstance(node, (list, tuple)):
        for i, value in enumerate(node):
            yield from _dicts(value, f'{path}.{i}')


def _hint(name: str, known) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f' (did you mean {close[0]!r}?)' if close else ''
