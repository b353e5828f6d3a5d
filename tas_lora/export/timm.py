"""The network for timm: a module that registers it, beside its weights."""

import shutil
from pathlib import Path

from torch import Tensor

from .alone import run_alone
from .source import PLAIN_VIT, Source, standing_alone

MODULE = 'tas_lora_vit.py'
_LOAD = """
import tas_lora_vit, timm
net = timm.create_model('tas_lora_vit', pretrained=True).eval()
"""


def write(source: Source, folder: Path) -> None:
    """Write ``tas_lora_vit.py``, ``plain_vit.py``, the weights and the architecture."""
    module = Path(__file__).with_name('timm_vit.py')
    (folder / MODULE).write_text(standing_alone(module, package=''), 'utf-8')
    shutil.copy(PLAIN_VIT, folder)
    for name in ('weights.safetensors', 'architecture.json'):
        shutil.copy(source.folder / name, folder)


def run(folder: Path, batches: list[Tensor]) -> list[Tensor]:
    """Logits of batches of images, by ``timm.create_model`` in a process of its own."""
    return run_alone(_LOAD, folder, batches)
