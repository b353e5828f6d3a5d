"""Folders that tools write to."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tas_lora import UserError


def check_new(folder: Path) -> None:
    """Refuse an ``--out`` that is a file or a folder that is not empty."""
    if folder.is_file():
        raise UserError(f'--out {folder} is a file; give a folder')
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f'--out {folder} is not empty; give another folder or remove it')


@contextmanager
def written_whole(out: Path) -> Iterator[Path]:
    """Yield a hidden folder beside ``out`` to write to; it becomes ``out`` at the end.

    After an error it is removed, and after a kill by the next call; ``out`` is never half a folder.

    Raises:
        UserError: If ``out`` is a file, or a folder that is not empty.
    """
    check_new(out)
    out = out.resolve()
    unfinished = out.with_name(f'.{out.name}.unfinished')
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        unfinished.replace(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
