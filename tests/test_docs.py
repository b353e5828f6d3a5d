"""Pages name files that exist, and every part that a config can name has its place."""

import ast
import inspect
import re
from pathlib import Path

import pytest

from tas_lora.models import ElasticViT
from tas_lora.structures import ViTStyle

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*(ROOT / 'docs').rglob('*.md'), ROOT / 'README.md', ROOT / 'CONTRIBUTING.md']
NAMED = re.compile(
    r'(?<![\w/.-])(?:configs|docs|projects|tas_lora|tests|tools)/[\w./-]*\w(?![\w*{])'
)


def name_of(decorator: ast.expr, default: str) -> str | None:
    """The name a decorator registers a definition by; None if it registers nothing."""
    if 'register_module' not in ast.unparse(decorator):
        return None
    names = [k.value.value for k in decorator.keywords if k.arg == 'name']
    return names[0] if names else default


def registered() -> set[str]:
    found = set()
    for path in (ROOT / 'tas_lora').rglob('*.py'):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                found |= {name_of(each, node.name) for each in node.decorator_list}
    return found - {None}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_files_exist(page):
    names = set(NAMED.findall(page.read_text('utf-8')))
    assert [name for name in sorted(names) if not (ROOT / name).exists()] == []


def test_parts_are_documented():
    text = ''.join(page.read_text('utf-8') for page in (ROOT / 'docs').rglob('*.md'))
    parts = registered()
    assert {'ElasticViT', 'HeldOutSplit', 'SandwichRule'} <= parts
    assert [name for name in sorted(parts) if not re.search(rf'\b{name}\b', text)] == []


def test_all_arguments_of_the_backbone_are_documented():
    text = (ROOT / 'docs/config_reference.md').read_text('utf-8')
    section = text.partition('### model.backbone')[2].partition('\n#')[0]
    named = set(re.findall(r'`([\w.]+)`', ''.join(re.findall(r'^\|([^|]*)\|', section, re.M))))
    arguments = set(inspect.signature(ElasticViT).parameters)
    assert named == arguments | {f'style.{field}' for field in ViTStyle.__dataclass_fields__}
