"""Folders that tools write to."""

from pathlib import Path

from tas_lora import UserError


def check_new(folder: Path) -> None:
    """Refuse an ``--out`` that is a file or a folder that is not empty."""
    if folder.is_file():
        raise UserError(f'--out {folder} is a file; give a folder')
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f'--out {folder} is not empty; give another folder or remove it')
