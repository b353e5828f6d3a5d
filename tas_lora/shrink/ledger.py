"""The record of a shrink: what was asked, which stages are done, and the digests of their files.

A stage is begun, then done. Of a stage that is neither, no file may be there: it would be somebody
else's. A file of a done stage must be as the stage left it, since all later ones depend on it.
"""

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..atomic_files import write_atomic
from ..errors import UserError
from ..provenance import read_json, sha256, versions

FILE = 'shrink.json'
_ADVICE = 'give another --out, or run the stages by hand from there on (docs/shrink.md)'


class Ledger:
    """Reads and writes ``shrink.json``.

    Args:
        folder: Where it is.
        request: What is asked now, for JSON.

    Raises:
        UserError: If the folder is of another request, or has an unreadable record.
    """

    def __init__(self, folder: Path, request: Mapping):
        self.folder, self.path = folder, folder / FILE
        request = json.loads(json.dumps(request))
        if self.path.exists():
            record = read_json(self.path, 'record', kind=dict)
            if not isinstance(record.get('request'), dict) or 'stages' not in record:
                raise UserError(f'{self.path} is not a record of tools/shrink.py; {_ADVICE}')
            self._compare(record['request'], request)
            self.record = record
        else:
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

    def check(self, name: str) -> None:
        """Refuse files of a stage that are not as they were left.

        Raises:
            UserError: If a file has changed or is missing, or is there before its stage.
        """
        for file, digest in self.stages[name]['files'].items():
            path = self.folder / file
            if not path.is_file():
                raise UserError(f'{path} of the stage {name} is missing; put it back, or {_ADVICE}')
            if sha256(path) != digest:
                raise UserError(
                    f'{path} is not as the stage {name} wrote it; put that back, or {_ADVICE}'
                )

    def begin(self, name: str, places: Iterable[str]) -> None:
        """Note that a stage starts, or starts again.

        Args:
            name: The stage.
            places: Files and folders that it writes.

        Raises:
            UserError: If one of these is there before the first start.
        """
        if name in self.stages:
            self.check(name)
            return
        for place in places:
            if (self.folder / place).exists():
                raise UserError(
                    f'{self.folder / place} is there, but no stage of this shrink wrote it; move '
                    'it away, or give another --out'
                )
        self.stages[name] = dict(done=False, files={}, seconds=0.0)
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

    def finish(self, name: str, files: Iterable[Path], result: Mapping, seconds: float) -> None:
        """Note that a stage has ended, with the files that later ones depend on."""
        stage = self.stages[name]
        for path in files:
            stage['files'][str(path.relative_to(self.folder))] = sha256(path)
        stage.update(done=True, result=dict(result), ended=time.strftime('%Y-%m-%d %H:%M:%S'))
        stage['seconds'] += seconds
        self._write()

    def reopen(self, name: str) -> None:
        """Let a done stage run again, over its own files."""
        self.stages[name].update(done=False, files={})
        self._write()

    def _write(self) -> None:
        write_atomic(self.path, json.dumps(self.record, indent=2) + '\n')
