"""Tools called as from a command line, but in this process, in the folder we are in."""

import runpy
import sys
from pathlib import Path

import pytest
from mmengine.logging import MMLogger

PROJECT = Path(__file__).parents[1]


def call(tool: str, *arguments, folder: Path = PROJECT / 'tools') -> None:
    """Run a tool of this project, or of another ``folder``; its exit is a ``SystemExit``."""
    argv, sys.argv = sys.argv, [tool, *map(str, arguments)]
    sys.path.insert(0, str(folder))  # as Python does for a script
    try:
        with pytest.MonkeyPatch.context() as patch:
            # What MMEngine logs at a start, laid out, takes longer than the runs.
            for home in (
                'mmengine.config.config',
                'yapf.yapflib.yapf_api',
            ):  # the fork has the latter
                patch.setattr(f'{home}.FormatCode', lambda text, **_: (text, False), raising=False)
            patch.setattr('mmengine.runner.runner.collect_env', dict)
            runpy.run_path(str(folder / tool), run_name='__main__')
    finally:
        sys.argv = argv
        sys.path.remove(str(folder))
        MMLogger._instance_dict.clear()
