"""Records of what was trained and measured; all tables and figures are made of these alone."""

import fcntl
import hashlib
import json
import os
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mmengine.config import Config

from tas_lora import UserError
from tas_lora.atomic_files import write_atomic
from tas_lora.engine.runner.resume_check import run_record

FILE = 'records.jsonl'
_SECTIONS = (
    'model',
    'data_preprocessor',
    'train_cfg',
    'train_dataloader',
    'optim_wrapper',
    'param_scheduler',
    'custom_hooks',
    'randomness',
)


def digest_of(cfg: Config, start: str | None = None) -> str:
    """Digest of all that decides a net's weights.

    Args:
        cfg: Its config.
        start: Digest of the net it starts from.
    """
    record = run_record(cfg, _SECTIONS) | dict(start=start)
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]


def revision() -> str:
    """The commit the code is of, with a + if files differ from it; 'unknown' outside of git."""
    found = subprocess.run(
        ['git', 'describe', '--always', '--abbrev=12', '--exclude=*', '--dirty=+'],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    return found.stdout.strip() or 'unknown'


@dataclass(frozen=True)
class Records:
    """The records of one condition, a line each in ``results/records.jsonl``.

    A record is a dict with a ``kind`` and, unique among these, the name of its ``net``. Until it
    is gathered it is a file of its own in the work folder: processes that train side by side do
    not write to one file, and what git tracks does not change below a training, which notes the
    revision.

    Args:
        results: Folder of the gathered records.
        work: Folder of the checkpoints; None where records are only read.
    """

    results: Path
    work: Path | None = None

    def all(self, kind: str = 'net') -> list[dict]:
        """The gathered records of one kind, by name.

        Raises:
            UserError: If a line is not a record, or two are of the same net.
        """
        known = sorted(self._gathered().items())
        return [record for (own, _), record in known if own == kind]

    def read(self, net: str, kind: str = 'net', digest: str | None = None) -> dict | None:
        """The record of a net, None if there is none.

        Args:
            net: Its name.
            kind: Of the record.
            digest: What the record's must be.

        Raises:
            UserError: If the record is of another config, or damaged.
        """
        record = self._waiting(kind, net) or self._gathered().get((kind, net))
        if record and digest is not None and digest != record['digest']:
            raise UserError(
                f'{net} in {self.results} is of another config (digest {record["digest"]}, now '
                f'{digest}); give another --out and --work-dir, or remove the lines and the work '
                'folders of what is to be made anew'
            )
        return record

    def write(self, record: dict) -> None:
        """Write a record into the work folder, whole or not at all."""
        path = self._file(record['kind'], record['net'])
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self.results):
            write_atomic(path, json.dumps(record, indent=1) + '\n')

    def gather(self, kind: str, nets: Iterable[str]) -> None:
        """Move the records of ``nets`` out of the work folder, in place of older lines."""
        with _locked(self.results):
            waiting = {(kind, net): self._waiting(kind, net) for net in nets}
            if found := {key: record for key, record in waiting.items() if record}:
                records = self._gathered() | found
                lines = [json.dumps(records[key], separators=(',', ':')) for key in sorted(records)]
                write_atomic(self.results / FILE, '\n'.join(lines) + '\n')
                for key in found:
                    self._file(*key).unlink()

    def _file(self, kind: str, net: str) -> Path:
        return self.work / net / f'{kind}.json'

    def _waiting(self, kind: str, net: str) -> dict | None:
        """The record in the work folder, if there is one."""
        try:
            return self.work and _parsed(self._file(kind, net).read_text(), self._file(kind, net))
        except FileNotFoundError:
            return None

    def _gathered(self) -> dict[tuple[str, str], dict]:
        path = self.results / FILE
        if not path.is_file():
            return {}
        status = path.stat()
        return _lines_of(path, (status.st_ino, status.st_mtime_ns))


@lru_cache(maxsize=1)
def _lines_of(path: Path, version: tuple[int, int]) -> dict[tuple[str, str], dict]:
    """The records in a file, by kind and name; read again only if its ``version`` changes."""
    found = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        record = _parsed(line, f'line {number} of {path}')
        key = record['kind'], record['net']
        if key in found:
            raise UserError(f'line {number} of {path} is a second one of {key[1]}; remove one')
        found[key] = record
    return found


def _parsed(text: str, place: Path | str) -> dict:
    try:
        record = json.loads(text)
        record['kind'], record['net']  # noqa: B018
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'{place} is not a record: {error}; remove it, and run.py continues'
        ) from error
    return record


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait until no other process holds the folder, and hold it; it is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
