"""Imports inside the package go one way, and nothing hides in module state."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Container, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / 'tas_lora').rglob('*.py'))

# A module may import from its own layer and those before it. A package counts where it stands
# itself, so that `from ..models import X` is an import of all that `models` exports.
LAYERS = (
    (
        'tas_lora.errors',
        'tas_lora.checks',
        'tas_lora.metric_rules',
        'tas_lora.renamed',
        'tas_lora.provenance',
        'tas_lora.atomic_files',
        'tas_lora.image_formats',
        'tas_lora.registry',
        'tas_lora.ranks',
        'tas_lora.stopping',
        'tas_lora.startup',
        'tas_lora.work_lock',
    ),
    ('tas_lora.packaged', 'tas_lora.openmmlab'),
    ('tas_lora.cfg_options', 'tas_lora.config'),
    ('tas_lora.structures',),
    ('tas_lora.search',),
    ('tas_lora.models.layers',),
    (
        'tas_lora.models.backbones',
        'tas_lora.models.heads',
        'tas_lora.models.plain_vit',
        'tas_lora.models.preparation',
        'tas_lora.models.transfer',
        'tas_lora.models.checkpoint',
        'tas_lora.models.foreign_names',
        'tas_lora.models.safe_load',
    ),
    ('tas_lora.models.classifiers',),
    (
        'tas_lora.models.export',
        'tas_lora.models.load',
        'tas_lora.models.pretrained',
        'tas_lora.models',
    ),
    ('tas_lora.datasets', 'tas_lora.evaluation'),
    ('tas_lora.report',),
    ('tas_lora.analysis',),
    ('tas_lora.export',),
    ('tas_lora.costs',),
    ('tas_lora.ordering',),
    ('tas_lora.engine',),
    (
        'tas_lora.apis',
        'tas_lora.shrink',
        'tas_lora.cli',
        'tas_lora.gpu_check',
        'tas_lora',
        'tas_lora.__main__',
    ),
)
ORDER = {name: layer for layer, names in enumerate(LAYERS) for name in names}
FRAMEWORKS = {'torch', 'torchvision', 'mmengine', 'mmcv', 'mmpretrain'}


def imports(source: str, package: str, modules: Container[str] = ()) -> Iterator[str]:
    """Full names of the modules that ``source``, a module inside ``package``, imports from.

    What is imported from a package by name is the package, or one of ``modules`` inside it.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split('.')[: len(package.split('.')) + 1 - node.level]
            parts = (above if node.level else []) + ([node.module] if node.module else [])
            base = '.'.join(parts)
            for alias in node.names:
                inside = f'{base}.{alias.name}'
                yield inside if inside in modules else base


def module_name(path: Path) -> str:
    return '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__')


def imports_of(path: Path, modules: Container[str] = ()) -> list[str]:
    package = '.'.join(path.relative_to(ROOT).parent.parts)
    return list(imports(path.read_text(), package, modules))


def imports_into(path: Path, packages: set[str]) -> list[str]:
    """Imports from any of some top-level packages, as text."""
    found = [name for name in imports_of(path) if name.split('.')[0] in packages]
    return [f'{module_name(path)} imports {name}' for name in found]


def refuse_circle(sources: Mapping[str, str], packages: Container[str] = ()) -> None:
    """Raise CycleError, which names the modules, if modules import each other in a circle."""
    graph = {}
    for name, source in sources.items():
        found = imports(source, name if name in packages else name.rpartition('.')[0], sources)
        graph[name] = {to for to in found if to in sources and to != name}
    graphlib.TopologicalSorter(graph).prepare()


def layer_of(module: str) -> int:
    """Layer of a module: its own entry, or that of the package it is in.

    In ``tas_lora`` and ``tas_lora.models`` every part needs an entry of its own.
    """
    parent = module
    while parent not in ORDER:
        parent = parent.rpartition('.')[0]
        assert parent not in ('', 'tas_lora', 'tas_lora.models'), f'{module} is in no layer'
    return ORDER[parent]


@pytest.mark.parametrize(
    ('source', 'expected'),
    [
        ('import torch.nn as nn', ['torch.nn']),
        ('from torch import nn', ['torch']),
        ('from . import elastic', ['tas_lora.models.layers']),
        ('from .elastic import slice_weight', ['tas_lora.models.layers.elastic']),
        ('from ...engine import hooks', ['tas_lora.engine']),
        ('def f():\n    from tas_lora import apis', ['tas_lora']),
    ],
)
def test_imports_are_read(source, expected):
    assert list(imports(source, 'tas_lora.models.layers')) == expected


def test_imports_go_down():
    up = []
    for path in FILES:
        if path.name != '__init__.py':
            own = layer_of(module_name(path))
            ours = [name for name in imports_of(path) if name.split('.')[0] == 'tas_lora']
            up += [f'{module_name(path)} imports {name}' for name in ours if layer_of(name) > own]
    assert up == []


def test_there_is_no_circle():
    """Also of imports inside functions and of those for type checkers alone."""
    packages = [module_name(path) for path in FILES if path.name == '__init__.py']
    refuse_circle({module_name(path): path.read_text() for path in FILES}, packages)


def test_a_circle_would_be_found():
    one = 'from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .two import Two\n'
    sources = {'tas_lora.one': one, 'tas_lora.two': 'import torch\n'}
    refuse_circle(sources)
    with pytest.raises(graphlib.CycleError):
        refuse_circle(sources | {'tas_lora.two': 'def f():\n    from . import one\n'})


def test_rooms_of_nas_lora_go_one_way():
    """Modules import from their own room, and rooms from each other in no circle."""
    project = ROOT / 'projects/nas_lora'
    graph = {}
    for path in (project / 'nas_lora').rglob('*.py'):
        *package, _ = path.relative_to(project).with_suffix('').parts
        if path.name != '__init__.py' and len(package) > 1:
            found = [name.split('.') for name in imports(path.read_text(), '.'.join(package))]
            to = {name[1] for name in found if name[0] == 'nas_lora' and len(name) > 2}
            graph.setdefault(package[1], set()).update(to - {package[1]})
    assert len(graph) == 7
    graphlib.TopologicalSorter(graph).prepare()


def test_packages_only_export():
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    for path in (ROOT / 'tas_lora').rglob('__init__.py'):
        nodes = ast.walk(ast.parse(path.read_text()))
        assert not any(isinstance(node, definitions) for node in nodes), path


@pytest.mark.parametrize('folder', ['structures', 'search'])
def test_values_and_search_need_no_framework(folder):
    for path in (ROOT / 'tas_lora' / folder).rglob('*.py'):
        assert imports_into(path, FRAMEWORKS) == []


def test_importing_the_package_loads_no_framework():
    code = (
        'import sys, time, tas_lora; seconds = time.process_time(); '
        'from tas_lora import SearchSpace, Subnet, count_params; '
        f'print(sorted({FRAMEWORKS} & set(sys.modules)), seconds)'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], check=True, capture_output=True, text=True, cwd=ROOT
    )
    loaded, seconds = done.stdout.rsplit(maxsplit=1)
    assert loaded == '[]'
    assert float(seconds) < 0.3  # of the processor, for Python's start and ours


def test_exported_network_needs_nothing_of_ours():
    assert imports_into(ROOT / 'tas_lora' / 'models' / 'plain_vit.py', {'tas_lora'}) == []


def test_the_package_needs_nothing_around_it():
    around = {'projects', 'tools', 'tests', 'configs'}
    assert [line for path in FILES for line in imports_into(path, around)] == []


def test_no_hidden_state():
    found = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            text = ast.unparse(node) if isinstance(node, (ast.Name, ast.Attribute)) else ''
            frozen = text == 'object.__setattr__'  # how dataclasses set fields
            if isinstance(node, ast.Global) or ('setattr' in text.split('.')[-1] and not frozen):
                found.append(f'{module_name(path)}, line {node.lineno}')
    assert found == []
