"""Run an exported network in a fresh Python process that has imported nothing else."""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

_BEFORE = """
import sys
folder, threads, given, wanted, search = sys.argv[1:]
sys.path[:0] = [path for path in (search, folder) if path]
"""
_AFTER = """
import torch
from safetensors.torch import load_file, save_file
torch.set_num_threads(int(threads))
with torch.no_grad():
    logits = {name: net(images).contiguous() for name, images in load_file(given).items()}
save_file(logits, wanted)
"""


def run_alone(
    load: str, folder: Path, batches: list[Tensor], search: Path | str = ''
) -> list[Tensor]:
    """Logits of each batch of images.

    Args:
        load: Python code that defines ``net``, a map from images to logits; ``folder`` is a string.
        folder: Folder of the export; its modules can be imported.
        batches: Images (B, channels, side, side).
        search: Another folder with modules to import.

    Raises:
        RuntimeError: With the last line of the process's errors.
    """
    with TemporaryDirectory() as place:
        given, wanted = Path(place, 'images.safetensors'), Path(place, 'logits.safetensors')
        save_file({str(i): images.clone() for i, images in enumerate(batches)}, given)
        # Hugging Face caches the code that it runs; this way the cache goes with the folder.
        settings = dict(HF_HOME=place, HF_HUB_OFFLINE='1')
        arguments = map(str, (folder.absolute(), torch.get_num_threads(), given, wanted, search))
        done = subprocess.run(
            [sys.executable, '-c', _BEFORE + load + _AFTER, *arguments],
            capture_output=True,
            text=True,
            env=os.environ | settings,
            cwd=place,
        )
        if done.returncode:
            raise RuntimeError((done.stderr.strip() or 'no reason given').splitlines()[-1])
        logits = load_file(wanted)
    return [logits[str(i)] for i in range(len(batches))]
