"""Names of 0.1 still work, and warn."""

from importlib import import_module

import pytest

OLD_AND_NEW = [
    ('tas_lora.search', 'Study', 'CandidateScorer'),
    ('tas_lora.export', 'Outcome', 'ParityCheck'),
    ('tas_lora.engine.search', 'result_of', 'read_result'),
]


@pytest.mark.parametrize(('package', 'old', 'new'), OLD_AND_NEW)
def test_old_names_warn(package, old, new):
    module = import_module(package)
    with pytest.warns(DeprecationWarning, match=f'{old} is called {new} now'):
        found = getattr(module, old)
    assert found is getattr(module, new)


def test_other_names_are_unknown():
    with pytest.raises(ImportError, match='Studies'):
        from tas_lora.search import Studies  # noqa: F401
