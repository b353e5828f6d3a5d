"""Records of runs, in a JSON file that is written again after each."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from tas_lora import UserError
from tas_lora.atomic_files import write_atomic
from tas_lora.packaged import command
from tas_lora.provenance import read_json, versions


class Records:
    """A list of records that grows on disk.

    Args:
        path: The file; it need not exist.
    """

    def __init__(self, path: Path):
        self.path = path
        self.all: list[dict] = read_json(path, 'records')['records'] if path.exists() else []

    def has(self, key: Mapping) -> bool:
        """Whether a record has these values."""
        return any(self._matching(key))

    def find(self, key: Mapping) -> dict:
        """The first record with these values.

        Raises:
            UserError: If there is none.
        """
        for record in self._matching(key):
            return record
        values = ', '.join(f'{name} {value}' for name, value in key.items())
        raise UserError(f'{self.path} has no record of {values}; run that first')

    def _matching(self, key: Mapping) -> Iterator[dict]:
        return (record for record in self.all if all(record.get(k) == key[k] for k in key))

    def add(self, record: dict) -> dict:
        """Append a record with what made it, and write all."""
        made_by = dict(command=command(), versions=versions(), threads=torch.get_num_threads())
        self.all.append(record | dict(made_by=made_by))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path, json.dumps(dict(records=self.all), indent=1) + '\n')
        return record
