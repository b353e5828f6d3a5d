"""The network for timm: a module that registers it, and its weights."""

import hashlib
import json
import shutil
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from ..errors import UserError
from . import preprocess
from .examples import Examples
from .isolated_run import prepare_alone, run_alone
from .source import PLAIN_VIT, Source, standing_alone

MODULE = 'tas_lora_vit.py'
_LOAD = """
import tas_lora_vit, timm
net = timm.create_model('tas_lora_vit', pretrained=True).eval().bake()
"""
_PREPARE = """
import tas_lora_vit, timm
model = timm.create_model('tas_lora_vit')
transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
found = [transform(image) for image in images]
"""


def write(source: Source, folder: Path) -> None:
    """Write ``tas_lora_vit.py``, ``plain_vit.py``, the weights and the architecture.

    Networks trained on BGR are converted to RGB.

    Raises:
        UserError: If the channel order is unknown, or timm has no terms for the test pipeline.
    """
    preprocess.check_known(source)
    if beyond := preprocess.beyond_cropping(source):
        raise UserError(f"timm's transforms have no {', no '.join(beyond)}; leave timm out")
    module = Path(__file__).with_name('timm_vit.py')
    (folder / MODULE).write_text(standing_alone(module, ''), 'utf-8')
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
        crop_mode='squash' if preprocess.is_squashed(source) else 'center',
    )
    description['is_reversed'] = is_reversed
    (folder / 'weights.safetensors').write_bytes(content)
    (folder / 'architecture.json').write_text(json.dumps(description, indent=2) + '\n', 'utf-8')


def run(folder: Path, batches: list[Tensor]) -> list[Tensor]:
    """Logits of each batch of images, by ``timm.create_model`` in a separate process."""
    if _is_reversed(folder):
        batches = [images.flip(1) for images in batches]
    return run_alone(_LOAD, folder, batches)


def prepare(folder: Path, examples: Examples) -> Tensor:
    """Files as timm's transforms prepare them, in a separate process; channels as in the test."""
    found = prepare_alone(_PREPARE, folder, examples.files, examples.mode)
    return found.flip(1) if _is_reversed(folder) else found


def _is_reversed(folder: Path) -> bool:
    return json.loads((folder / 'architecture.json').read_text('utf-8'))['is_reversed']
