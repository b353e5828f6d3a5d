"""The network as a folder that Hugging Face transformers loads by its own code."""

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save
from torch import Tensor

from .alone import run_alone
from .source import PLAIN_VIT, Source, standing_alone

MODULE = 'modeling_tas_lora.py'
_LOAD = """
from transformers import AutoModelForImageClassification
model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True).eval()
net = lambda images: model(pixel_values=images).logits
"""


def write(source: Source, folder: Path) -> None:
    """Write config, code, weights and card, and for colour images how to prepare them."""
    weights = load_file(source.folder / 'weights.safetensors')
    renamed = {f'vit.{name}': value for name, value in weights.items()}
    # Not by save_file, which lets nobody else read the file.
    (folder / 'model.safetensors').write_bytes(save(renamed, metadata=dict(format='pt')))
    module = Path(__file__).with_name('transformers_vit.py')
    (folder / MODULE).write_text(standing_alone(module, package='.'), 'utf-8')
    shutil.copy(PLAIN_VIT, folder)
    (folder / 'README.md').write_text(source.card, 'utf-8')
    _write_json(folder / 'config.json', _config(source))
    if source.network['in_channels'] == 3:
        _write_json(folder / 'preprocessor_config.json', _processor(source))


def run(folder: Path, batches: list[Tensor]) -> list[Tensor]:
    """Logits of batches of images, by ``AutoModelForImageClassification`` in its own process."""
    return run_alone(_LOAD, folder, batches)


def _config(source: Source) -> dict:
    count = source.network['num_classes']
    names = source.description.get('classes') or [f'LABEL_{i}' for i in range(count)]
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


def _processor(source: Source) -> dict:
    """For transformers' processor of vision transformers: values are first scaled to 0..1."""
    side, preprocess = source.network['img_size'], source.description['preprocess']
    mean, std = preprocess['mean'], preprocess['std']
    scaled = {} if mean is None else dict(image_mean=[x / 255 for x in mean])
    scaled |= {} if std is None else dict(image_std=[x / 255 for x in std])
    return dict(
        image_processor_type='ViTImageProcessor',
        do_resize=True,
        size=dict(height=side, width=side),
        resample=3,  # bicubic
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=mean is not None,
        **scaled,
    )


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + '\n', 'utf-8')
