"""The network for timm: a module that registers it, and its weights."""

import hashlib
import json
import shutil
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from . import preprocess
from .isolated_run import run_alone
from .source import PLAIN_VIT, Source, standing_alone

MODULE = 'tas_lora_vit.py'
_LOAD = """
import tas_lora_vit, timm
net = timm.create_model('tas_lora_vit', pretrained=True).eval().bake()
"""


def write(source: Source, folder: Path) -> None:
    """Write ``tas_lora_vit.py``, ``plain_vit.py``, the weights and the architecture.

    A network trained on BGR is written for RGB.

    Raises:
        UserError: If the order of channels is not known.
    """
    module = Path(__file__).with_name('timm_vit.py')
    (folder / MODULE).write_text(standing_alone(module, package=''), 'utf-8')
    shutil.copy(PLAIN_VIT, folder)
    weights, mean, std, is_reversed = preprocess.in_rgb(source)
    content, description = save(weights), dict(source.description)
    if is_reversed:
        own = {name: [255 * x for x in values] for name, values in dict(mean=mean, std=std).items()}
        description['preprocess'] = description['preprocess'] | own | dict(channel_order='RGB')
    description['weights_sha256'] = hashlib.sha256(content).hexdigest()
    description['timm'] = dict(
        mean=mean,
        std=std,
        interpolation=preprocess.interpolation(source),
        crop_pct=preprocess.crop_share(source),
        crop_mode='squash' if preprocess.resized_edge(source) is None else 'center',
    )
    description['is_reversed'] = is_reversed
    (folder / 'weights.safetensors').write_bytes(content)
    (folder / 'architecture.json').write_text(json.dumps(description, indent=2) + '\n', 'utf-8')


def run(folder: Path, batches: list[Tensor]) -> list[Tensor]:
    """Logits of batches of images, by ``timm.create_model`` in a process of its own."""
    if json.loads((folder / 'architecture.json').read_text('utf-8'))['is_reversed']:
        batches = [images.flip(1) for images in batches]
    return run_alone(_LOAD, folder, batches)
