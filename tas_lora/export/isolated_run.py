"""Run an exported network in a Python of its own, which has imported nothing else."""

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
    """Logits of batches of images.

    Args:
        load: Python that makes ``net``, which maps images to logits, from ``folder``, a string.
        folder: Of the export; modules in it can be imported.
        batches: Images (B, channels, side, side) each.
        search: A folder where other modules are.

    Raises:
        RuntimeError: With the last line of what went wrong.
    """
    with TemporaryDirectory() as place:
        given, wanted = Path(place, 'images.safetensors'), Path(place, 'logits.safetensors')
        save_file({str(i): images.clone() for i, images in enumerate(batches)}, given)
        # Whatever Hugging Face would keep of the code it runs goes away with the folder.
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
