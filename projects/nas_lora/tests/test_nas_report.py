"""Records of a stranger, for the tables and figures."""

import os

import pytest
from nas_lora.report import read_records

from tas_lora import UserError


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        ('{', 'is not JSON'),
        ('[1]', 'must hold a dict'),
        ('{}', 'is not a record; remove it'),
        ('{"method": "os.system"}', 'is not a record; remove it'),
        ('[' * 900 + ']' * 900, 'nested more than 50 deep'),
        (None, 'it is a pipe or a device'),
    ],
)
def test_what_is_no_record_is_refused_by_name(tmp_path, content, said):
    path = tmp_path / 'lora_seed0.json'
    if content is None:
        os.mkfifo(path)
    else:
        path.write_text(content)
    with pytest.raises(UserError, match=rf'lora_seed0\.json .*{said}'):
        read_records(tmp_path)
