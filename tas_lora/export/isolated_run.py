"""Run an exported network in a fresh Python process that has imported nothing else."""

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file, save
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
_OPEN = """
import json
from pathlib import Path
from PIL import Image, ImageOps
paths, mode = json.loads(Path(given).read_text('utf-8'))
images = (ImageOps.exif_transpose(Image.open(path)).convert(mode) for path in paths)
"""
_SAVE = """
import torch
from safetensors.torch import save_file
save_file({'inputs': torch.stack([torch.as_tensor(image) for image in found])}, wanted)
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
    given = save({str(i): images.clone() for i, images in enumerate(batches)})
    logits = _run(load + _AFTER, folder, given, search)
    return [logits[str(i)] for i in range(len(batches))]


def prepare_alone(
    load: str, folder: Path, files: list[str], mode: str = 'RGB', search: Path | str = ''
) -> Tensor:
    """Image files as a library prepares them for the network, (B, channels, side, side).

    Args:
        load: Python code that defines ``found``, a list of tensors (channels, side, side), given
            ``paths`` and ``images`` of Pillow.
        folder: Folder of the export; its modules can be imported.
        files: Paths of the images.
        mode: Pillow's mode of the images.
        search: Another folder with modules to import.

    Raises:
        RuntimeError: With the last line of the process's errors.
    """
    # The process runs in another folder.
    given = json.dumps([[os.path.abspath(file) for file in files], mode]).encode()
    return _run(_OPEN + load + _SAVE, folder, given, search)['inputs']


def _run(code: str, folder: Path, content: bytes, search: Path | str) -> dict[str, Tensor]:
    """The tensors that ``code`` writes to ``wanted``; ``given`` is a file with ``content``."""
    with TemporaryDirectory() as place:
        given, wanted = Path(place, 'given'), Path(place, 'wanted')
        given.write_bytes(content)
        # Hugging Face caches the code that it runs; this way the cache goes with the folder.
        settings = dict(HF_HOME=place, HF_HUB_OFFLINE='1')
        arguments = map(str, (folder.absolute(), torch.get_num_threads(), given, wanted, search))
        done = subprocess.run(
            [sys.executable, '-c', _BEFORE + code, *arguments],
            capture_output=True,
            text=True,
            env=os.environ | settings,
            cwd=place,
        )
        if done.returncode:
            raise RuntimeError((done.stderr.strip() or 'no reason given').splitlines()[-1])
        return load_file(wanted)
