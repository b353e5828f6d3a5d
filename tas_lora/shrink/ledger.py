"""The record of a shrink: what was asked, which stages are done, and the digests of their files.

A stage is begun, then done. Of a stage that is neither, no file may be there: it would be somebody
else's. A file of a done stage must be as the stage left it, since all later ones depend on it.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..atomic_files import write_atomic
from ..errors import UserError
from ..provenance import read_json, sha256, versions

FILE = 'shrink.json'
_SEAL = 'sha256'  # of all else in the record
_ADVICE = 'give another --out, or run the stages by hand from there on (docs/shrink.md)'


class Ledger:
    """Reads and writes ``shrink.json``.

    Args:
        folder: Where it is.
        request: What is asked now, for JSON.

    Raises:
        UserError: If the folder is of another request that has written something, or its record
            cannot be read or was edited.
    """

    def __init__(self, folder: Path, request: Mapping):
        self.folder, self.path = folder, folder / FILE
        request = json.loads(json.dumps(request))
        if self.path.exists():
            record = read_json(self.path, 'record', kind=dict)
            if record.pop(_SEAL, None) != _digest(record):
                raise UserError(f'{self.path} is not as tools/shrink.py wrote it; {_ADVICE}')
            if record['request'] == request or any(s['files'] for s in record['stages'].values()):
                self._compare(record['request'], request)
                self.record = record
                return
        self.record = dict(request=request, versions=versions(), stages={})

    def _compare(self, before: Mapping, now: Mapping) -> None:
        for name in now:
            if before.get(name) != now[name]:
                raise UserError(
                    f'{self.folder} is of a shrink with {name}={before.get(name)!r}, and now it is '
                    f'{now[name]!r}; ask for the same, or give another --out'
                )

    @property
    def stages(self) -> dict[str, dict]:
        """Records of the stages that are begun or done."""
        return self.record['stages']

    def is_done(self, name: str) -> bool:
        """Whether a stage has ended."""
        return self.stages.get(name, {}).get('done', False)

    def result(self, name: str) -> dict:
        """What a done stage has found."""
        return self.stages[name]['result']

    def check(self, name: str, places: Iterable[str]) -> None:
        """Refuse files of a stage that are not as they were left.

        Args:
            name: The stage.
            places: Files and folders that it writes.

        Raises:
            UserError: If a file has changed or is missing, or is there before its stage.
        """
        if name not in self.stages:
            there = [path for place in places if (path := self.folder / place).exists()]
            if there:
                raise UserError(
                    f'{there[0]} is there, but no stage of this shrink wrote it; move it away, or '
                    'give another --out'
                )
        for file, digest in self.stages.get(name, {}).get('files', {}).items():
            path = self.folder / file
            if not path.is_file():
                raise UserError(f'{path} of the stage {name} is missing; put it back, or {_ADVICE}')
            if sha256(path) != digest:
                raise UserError(
                    f'{path} is not as the stage {name} wrote it; put that back, or {_ADVICE}'
                )

    def has(self, name: str, path: Path) -> bool:
        """Whether a file of a stage is noted."""
        return str(path.relative_to(self.folder)) in self.stages[name]['files']

    def begin(self, name: str) -> None:
        """Note that a stage starts, or starts again."""
        new = dict(done=False, files={}, seconds=0.0, starts=0)
        self.stages.setdefault(name, new)['starts'] += 1
        self._write()

    def write_config(self, name: str, file: str, text: str) -> Path:
        """Write a config of a stage that is begun, unless it is there; returns its path."""
        path, files = self.folder / file, self.stages[name]['files']
        if file not in files or not path.exists():
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, text)
            files[file] = sha256(path)
            self._write()
        return path

    def note(self, name: str, files: Iterable[Path]) -> None:
        """Note files of a stage that is not done, which it does not write again."""
        self._add(name, files)
        self._write()

    def finish(self, name: str, files: Iterable[Path], result: Mapping, seconds: float) -> None:
        """Note that a stage has ended, with its files."""
        self._add(name, files)  # recorded along with the end: until then a start writes them anew
        stage = self.stages[name]
        stage.update(done=True, result=dict(result), ended=time.strftime('%Y-%m-%d %H:%M:%S'))
        stage['seconds'] += seconds
        self._write()

    def reopen(self, name: str) -> None:
        """Let a done stage run again, over its own files."""
        self.stages[name].update(done=False, files={})
        self._write()

    def _add(self, name: str, files: Iterable[Path]) -> None:
        digests = {str(path.relative_to(self.folder)): sha256(path) for path in files}
        self.stages[name]['files'] |= digests

    def _write(self) -> None:
        sealed = self.record | {_SEAL: _digest(self.record)}
        write_atomic(self.path, json.dumps(sealed, indent=2) + '\n')


def _digest(record: Mapping) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
