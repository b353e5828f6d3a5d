"""MkDocs hook: files of the repository as pages, the table of layers, roles in docstrings.

The layers are read from the test that holds the imports to them.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INCLUDE = re.compile(r'<!-- include (\S+) -->')
PLACE = '<!-- layers -->'
HEADER = '| layer | modules |\n| ---: | --- |'


def on_page_markdown(markdown: str, **kwargs) -> str:
    """Fill in included files and the layers."""
    markdown = INCLUDE.sub(lambda found: included(found[1]), markdown)
    return markdown.replace(PLACE, layer_table()) if PLACE in markdown else markdown


def on_page_content(html: str, **kwargs) -> str:
    """Show what a Sphinx role names, without the role."""
    return re.sub(r':\w+:<code>~?(?:[\w.]+\.)?(\w+)</code>', r'<code>\1</code>', html)


def included(name: str) -> str:
    """A Markdown file of the repository; its links into ``docs`` are made links of the site."""
    return re.sub(r'\]\((?:\.\./)?docs/', '](', (ROOT / name).read_text('utf-8'))


def layer_table() -> str:
    """The layers of the package, the top first, as a Markdown table."""
    rows = (
        f'| {number} | {", ".join(f"`{name}`" for name in names)} |'
        for number, names in reversed(list(enumerate(layers(), 1)))
    )
    return '\n'.join([HEADER, *rows])


def layers() -> tuple:
    """``LAYERS`` of the test."""
    source = (ROOT / 'tests/test_layering.py').read_text('utf-8')
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == 'LAYERS':
            return ast.literal_eval(node.value)
    raise LookupError('tests/test_layering.py has no LAYERS')
