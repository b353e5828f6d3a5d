"""Reading a config, and finding mistakes in it before anything is built."""

import difflib
import inspect
import logging
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import EarlyStoppingHook
from mmengine.logging import print_log
from mmengine.optim.scheduler import ReduceOnPlateauParamScheduler
from mmengine.registry import (
    DATASETS,
    HOOKS,
    LOOPS,
    METRICS,
    MODELS,
    PARAM_SCHEDULERS,
    TASK_UTILS,
    TRANSFORMS,
    Registry,
    init_default_scope,
)
from mmengine.runner import Runner

from .cfg_options import accepted_types, fields_made_from, fitting_value
from .checks import natural, positive
from .errors import UserError, blame
from .image_formats import restrict_pillow
from .metric_rules import settled_rule
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
# What MMEngine's runner and MMPretrain's tools also read from a config.
_READ = (
    *(name for name in _RUNNER if name not in ('self', 'cfg')),
    'activation_checkpointing',
    'compile',
    'efficient_conv_bn_eval',
    'find_unused_parameters',
    'model_wrapper_cfg',
    'runner_type',
    'sync_bn',
)
_READ_BY = {'tas_lora.SimilarityHook': 'heldout_dataloader'}
# Dicts without a type, of which MMEngine ignores other keys.
_KEYS = dict(
    auto_scale_lr=('base_batch_size', 'enable'),
    env_cfg=('cudnn_benchmark', 'dist_cfg', 'mp_cfg', 'resource_limit'),
)
_SHOWN = 5
_ANY = inspect.Parameter('any', inspect.Parameter.VAR_KEYWORD)
# A config has one optimizer wrapper, often without a type.
_OPTIM_WRAPPERS = ('SupernetOptimWrapper', 'JointOptimWrapper', 'MoLEOptimWrapperConstructor')
# Keys that MMEngine removes before it calls a constructor.
_CONSUMED = {'type', '_scope_', 'priority'}


def load_config(
    path: str | Path, options: dict | None = None, reads: Collection[str] = ()
) -> Config:
    """Read a config, apply ``--cfg-options``, and refuse unknown arguments.

    Args:
        path: A file, or the name of a packaged config.
        options: Values by dotted key.
        reads: Variables of the config that the caller reads, so that options may change them.
    """
    path = find_config(path)
    with blame(f'config {path} cannot be read'):
        cfg = Config.fromfile(path)
    if 'model' not in cfg:
        raise UserError(f'config {path} has no model; files in _base_ are only parts of configs')
    return checked_config(cfg, options, reads)


def checked_config(cfg: Config, options: dict | None = None, reads: Collection[str] = ()) -> Config:
    """Apply options to a config, and refuse unknown arguments; see :func:`load_config`."""
    restrict_pillow()
    options = options or {}
    init_default_scope(options.get('default_scope') or cfg.get('default_scope', 'mmpretrain'))
    hooks = [node['type'] for _, node in _typed(cfg.get('custom_hooks'), '')]
    read = {*_READ, *reads, *(_READ_BY[h] for h in hooks if h in _READ_BY)}
    for key in options:
        _check_is_read(cfg, key, read)
    texts = getattr(options, 'texts', {})
    typed = {k: fitting_value(texts[k], *_field(cfg, k)) for k in options if k in texts}
    with blame('--cfg-options do not fit the config'):
        cfg.merge_from_dict(options | typed)
    check_names(cfg)
    for field, registry in _REGISTRIES.items():
        for path, node in _typed(cfg.get(field), field):
            check_arguments(path, node, TRANSFORMS if 'pipeline' in path else registry)
    check_numbers(cfg)
    settle_rules(cfg)
    return cfg


def _check_is_read(cfg: Config, key: str, read: set[str]) -> None:
    """Refuse an option that would change nothing: a variable of the config, or an unknown name."""
    first, _, rest = key.partition('.')
    if first in read:
        return
    if first not in cfg:
        raise UserError(
            f'--cfg-options {key}: the config has no {first!r}{_hint(first, [*read, *cfg])}'
        )
    made = fields_made_from(cfg.to_dict(), first, read)
    names = list(dict.fromkeys(f'{path}.{rest}'.strip('.') for path in made))
    more = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
    advice = f'change the fields of its value that are meant: {", ".join(names[:_SHOWN])}{more}'
    raise UserError(
        f'--cfg-options {key}: {first} is a variable, which only the config itself reads, before '
        f'options apply; {advice if names else "no field has its value; edit the config"}'
    )


def _field(cfg: Config, key: str) -> tuple[tuple[type, ...] | None, Any]:
    """The types that the field of an option accepts, None if unknown, and its present value."""
    *parents, last = key.split('.')
    registry = TRANSFORMS if 'pipeline' in parents else _REGISTRIES.get(key.split('.')[0])
    node = cfg
    for name in parents:
        node = _child(node, name)
    if not parents:
        parameter = _RUNNER.get(last)
    else:
        component = _component(node, registry) if isinstance(node, dict) else None
        parameter = _parameters(component).get(last) if component is not None else None
    return parameter and accepted_types(parameter), _child(node, last)


def _child(node, name: str):
    if isinstance(node, (dict, Config)):
        return node.get(name)
    is_place = isinstance(node, (list, tuple)) and name.isdigit() and int(name) < len(node)
    return node[int(name)] if is_place else None


def check_names(cfg: Config) -> None:
    """Refuse top-level names that look like a misspelt argument of the runner.

    Other unknown names are variables of the config. Also refuse names that MMEngine ignores.
    """
    for name in cfg:
        if name not in _RUNNER:
            close = difflib.get_close_matches(name, _RUNNER, n=1, cutoff=0.88)
            if close and close[0] not in cfg:
                raise UserError(f'the config sets {name!r}; did you mean {close[0]!r}?')
    for field, known in _KEYS.items():
        for key in cfg.get(field) or ():
            if key not in known:
                raise UserError(f'{field}.{key} is read by nothing{_hint(key, known)}')


def check_arguments(path: str, node: dict, registry: Registry) -> None:
    """Refuse arguments of ``node`` that the component named by its ``type`` does not accept."""
    accepted = _accepted_arguments(_component(node, registry))
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


_WATCHERS = (EarlyStoppingHook, ReduceOnPlateauParamScheduler)


def settle_rules(cfg: Config) -> None:
    """Give each part that watches a metric its ``rule``, which MMEngine sets to 'less' for some."""
    for field, registry in (('param_scheduler', PARAM_SCHEDULERS), ('custom_hooks', HOOKS)):
        for path, node in _dicts(cfg.get(field), field):
            component = _component(node, registry) if 'type' in node else None
            arguments = _parameters(component)
            metric = node.get('monitor')
            if metric and inspect.isclass(component) and issubclass(component, _WATCHERS):
                rule = settled_rule(metric, node.get('rule'), f'{path}.rule', _warn)
                if rule != arguments['rule'].default:
                    node['rule'] = rule


_warn = partial(print_log, logger='current', level=logging.WARNING)


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


def types_in(cfg: Config | dict) -> set[str]:
    """Names of the classes of all parts of a config, without their scopes."""
    typed = (node for field in _RUNNER for _, node in _typed(cfg.get(field), field))
    return {node['type'].split('.')[-1] for node in typed}


def _shows(error: UserError, part: dict) -> bool:
    """Whether the message shows the value that ``part`` has in the field."""
    value = re.escape(repr(part.get(error.field)))
    return error.field in part and bool(re.search(f'(got|is) {value}([,;:]|$)', error.message))


def _check_number(node, path: str, key: str, check: Callable, *kind) -> None:
    if isinstance(node, dict) and key in node:
        check(node[key], f'{path}.{key}', *kind)


def _component(node: dict, registry: Registry | None):
    """The class or function that ``node`` names by its type; None if there is none."""
    kind = node.get('type')
    if not isinstance(kind, str):
        return kind
    # Strategies and groupings occur inside other components.
    registries = [r for r in (registry, TASK_UTILS) if r is not None]
    names = (kind, f'mmpretrain.{kind}')
    return next(filter(None, (r.get(n) for r in registries for n in names)), None)


def _accepted_arguments(component) -> set[str] | None:
    """Names of :func:`_parameters`; None if the component takes any."""
    parameters = _parameters(component)
    return None if '**' in parameters else set(parameters)


def _parameters(component) -> dict[str, inspect.Parameter]:
    """Arguments of a component, following ``**kwargs`` up its bases; with '**' if it takes any."""
    if inspect.isfunction(component):
        return dict(inspect.signature(component).parameters)
    if not inspect.isclass(component):
        return {'**': _ANY}
    accepted = {}
    for cls in component.__mro__:
        if '__init__' not in vars(cls) or cls is object:
            continue
        parameters = inspect.signature(cls.__init__).parameters
        named = {n: p for n, p in parameters.items() if p.kind is not p.VAR_KEYWORD and n != 'self'}
        accepted = named | accepted
        if len(named) + 1 == len(parameters):
            return accepted
    return accepted | {'**': _ANY}


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
