"""Read all prose through proselint: pages, docstrings and the tutorial, code left out.

Lines keep their numbers. What is not checked, and why: ranges of numbers look like dates,
"multiply-adds" like an adverb, and curly quotes are not for code.
"""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
OFF = {'dates_times': False, 'misc.phrasal_adjectives.ly': False, 'typography': False}
CODE = re.compile(r'^ *```.*?^ *```|(`+)[^`].*?\1', re.MULTILINE | re.DOTALL)


def prose_of(path: Path) -> str:
    """What is prose in a file, on the lines where it is."""
    text = path.read_text('utf-8')
    if path.suffix == '.py':
        text = docstrings(text)
    elif path.suffix == '.ipynb':
        cells = json.loads(text)['cells']
        text = '\n\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
    return CODE.sub(lambda code: '(-)' + '\n' * code[0].count('\n'), text)


def docstrings(source: str) -> str:
    """The docstrings of a module, with empty lines for the rest."""
    lines = source.splitlines()
    kept = [''] * len(lines)
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, owners) and ast.get_docstring(node):
            first, last = node.body[0].lineno - 1, node.body[0].end_lineno
            kept[first:last] = lines[first:last]
    return '\n'.join(kept)


def main():
    """Check all files that git knows."""
    names = ['*.md', '*.ipynb', 'tas_lora/*.py', 'tools/*.py']
    listed = subprocess.check_output(['git', 'ls-files', *names], cwd=ROOT, text=True)
    with TemporaryDirectory() as folder:
        for name in listed.splitlines():
            copy = Path(folder, name + '.md')
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(prose_of(ROOT / name), 'utf-8')
        config = Path(folder, '.proselintrc.json')  # read from the current folder
        config.write_text(json.dumps(dict(checks=OFF, max_errors=1000)))
        tool = Path(sys.executable).with_name('proselint')
        done = subprocess.run([tool, 'check', '.'], cwd=folder, capture_output=True, text=True)
    real = str(Path(folder).resolve())
    print((done.stdout + done.stderr).replace(real + '/', '').replace('.md:', ':'), end='')
    sys.exit(done.returncode)


if __name__ == '__main__':
    main()
