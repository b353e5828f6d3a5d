"""The tutorial of the documentation runs from top to bottom."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = ROOT / 'docs' / 'tutorial.ipynb'
PICTURES = 3  # gates, search, predictions


@pytest.fixture(scope='module')
def executed():
    notebook = nbformat.read(TUTORIAL, as_version=4)
    place = dict(metadata=dict(path=str(ROOT / 'docs')))
    return NotebookClient(notebook, timeout=1200, kernel_name='python3', resources=place).execute()


def outputs(notebook) -> list:
    return [output for cell in notebook.cells for output in cell.get('outputs', [])]


def printed(notebook) -> str:
    return ''.join(output.get('text', '') for output in outputs(notebook))


def test_it_runs_to_its_end(executed):
    assert [o for o in outputs(executed) if o.output_type == 'error'] == []
    assert 'top-1 of the export' in printed(executed)
    assert sum('image/png' in o.get('data', {}) for o in outputs(executed)) == PICTURES


def test_the_export_is_better_than_chance(executed):
    line = next(x for x in printed(executed).splitlines() if x.startswith('top-1 of the export'))
    assert float(line.split(':')[1].strip(' %')) > 80


def test_stored_outputs_are_of_a_whole_run():
    stored = nbformat.read(TUTORIAL, as_version=4)
    counts = [cell.execution_count for cell in stored.cells if cell.cell_type == 'code']
    assert counts == list(range(1, len(counts) + 1))
    assert 'Traceback' not in printed(stored)
