"""The network as a folder for Hugging Face transformers, with its own code."""

import json
import shutil
from collections import Counter
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from . import preprocess
from .examples import Examples
from .isolated_run import prepare_alone, run_alone
from .source import PLAIN_VIT, Source, standing_alone

MODULE, IMAGE_MODULE = 'modeling_tas_lora.py', 'image_processing_tas_lora.py'
_LOAD = """
from transformers import AutoModelForImageClassification
model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True).eval()
net = lambda images: model(pixel_values=images).logits
"""
_PREPARE = """
from transformers import AutoImageProcessor
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
found = [processor(image, return_tensors='pt')['pixel_values'][0] for image in images]
"""


def write(source: Source, folder: Path) -> None:
    """Write config, code, weights and card; for 1 or 3 channels also the image processor's config.

    Networks trained on BGR are converted to RGB.

    Raises:
        UserError: If the channel order or a step of the test pipeline is unknown.
    """
    preprocess.check_known(source)
    weights, mean, std, is_reversed = preprocess.in_rgb(source)
    renamed = {f'vit.{name}': value for name, value in weights.items()}
    # save_file would create a file that only its owner can read.
    (folder / 'model.safetensors').write_bytes(save(renamed, metadata=dict(format='pt')))
    here, channels = Path(__file__), source.network['in_channels']
    module = here.with_name('transformers_vit.py')
    (folder / MODULE).write_text(standing_alone(module, package='.'), 'utf-8')
    shutil.copy(PLAIN_VIT, folder)
    (folder / 'README.md').write_text(source.card, 'utf-8')
    _write_json(folder / 'config.json', _config(source) | dict(is_reversed=is_reversed))
    if channels in (1, 3):
        image_module = here.with_name('transformers_image.py')
        (folder / IMAGE_MODULE).write_text(standing_alone(image_module, package='.'), 'utf-8')
        shutil.copy(here.with_name('image_preparation.py'), folder)
        _write_json(folder / 'preprocessor_config.json', _processor(source, mean, std))


def run(folder: Path, batches: list[Tensor]) -> list[Tensor]:
    """Logits of each batch, by ``AutoModelForImageClassification`` in a separate process."""
    if _is_reversed(folder):
        batches = [images.flip(1) for images in batches]
    return run_alone(_LOAD, folder, batches)


def prepare(folder: Path, examples: Examples) -> Tensor:
    """Files by ``AutoImageProcessor`` in a separate process; channels as in the test."""
    found = prepare_alone(_PREPARE, folder, examples.files, examples.mode)
    return found.flip(1) if _is_reversed(folder) else found


def _is_reversed(folder: Path) -> bool:
    return json.loads((folder / 'config.json').read_text('utf-8'))['is_reversed']


def _config(source: Source) -> dict:
    count = source.network['num_classes']
    names = source.description.get('classes') or [f'LABEL_{i}' for i in range(count)]
    names = _kept_apart(names)
    code = MODULE.removesuffix('.py')
    return dict(
        model_type='tas_lora_vit',
        architectures=['TasLoraForImageClassification'],
        auto_map=dict(
            AutoConfig=f'{code}.TasLoraConfig',
            AutoModelForImageClassification=f'{code}.TasLoraForImageClassification',
        ),
        network=source.network,
        id2label={str(i): name for i, name in enumerate(names)},
        label2id={name: i for i, name in enumerate(names)},
        dtype='float32',
    )


def _processor(source: Source, mean: list[float], std: list[float]) -> dict:
    """Config of our image processor; transformers' own round the crop's place otherwise."""
    network, name = source.network, 'TasLoraImageProcessor'
    values = {what: [255 * x for x in part] for what, part in dict(mean=mean, std=std).items()}
    preparation = dict(
        preprocess=source.description['preprocess'] | values | dict(channel_order='RGB'),
        channels=network['in_channels'],
        side=network['img_size'],
    )
    return dict(
        image_processor_type=name,
        auto_map=dict(AutoImageProcessor=f'{IMAGE_MODULE.removesuffix(".py")}.{name}'),
        preparation=preparation,
        # Training scripts read these for transforms of their own.
        size=dict(height=network['img_size'], width=network['img_size']),
        image_mean=mean,
        image_std=std,
    )


def _kept_apart(names: list[str]) -> list[str]:
    """Names with their index added where two classes share one, as ImageNet's two cranes."""
    while shared := {name for name, count in Counter(names).items() if count > 1}:
        names = [f'{name} ({i})' if name in shared else name for i, name in enumerate(names)]
    return names


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + '\n', 'utf-8')
