"""Importing this module puts the project's package on the path, from any working directory."""

import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]


def add(project: Path) -> None:
    """Make the package of a project importable."""
    if str(project) not in sys.path:
        sys.path.insert(0, str(project))


add(PROJECT)
