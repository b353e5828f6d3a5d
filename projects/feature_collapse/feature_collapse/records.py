"""One JSON file for each trained net; all tables and figures are made of these alone."""

import hashlib
import json
import subprocess
from pathlib import Path

from mmengine.config import Config

from tas_lora import UserError
from tas_lora.atomic_files import write_atomic
from tas_lora.engine.runner.resume_check import run_record

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


def write(folder: Path, record: dict) -> None:
    """Write the record of ``record['net']``, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / f'{record["net"]}.json', json.dumps(record, indent=1) + '\n')


def read(folder: Path, name: str, digest: str | None = None) -> dict | None:
    """The record of a net, None if there is none.

    Args:
        folder: Where records are.
        name: Of the net.
        digest: What the record's must be.

    Raises:
        UserError: If the record is of another config, or no JSON.
    """
    path = folder / f'{name}.json'
    if not path.is_file():
        return None
    record = _parsed(path)
    if digest is not None and digest != record['digest']:
        raise UserError(
            f'{path} is of another config (digest {record["digest"]}, now {digest}); give another '
            'folder by --out, or remove the records and work folders that are to be made anew'
        )
    return record


def read_all(folder: Path) -> list[dict]:
    """All records of a folder, by name.

    Raises:
        UserError: If there is none, or one is no JSON.
    """
    found = read_families(folder)
    if not found:
        raise UserError(f'{folder} has no records; run.py writes them')
    return found


def read_families(folder: Path) -> list[dict]:
    """All records of a folder, which may have none."""
    return [_parsed(path) for path in sorted(folder.glob('*_seed*.json'))]


def _parsed(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f'{path} is no JSON: {error}; remove it, and run.py goes on') from error
