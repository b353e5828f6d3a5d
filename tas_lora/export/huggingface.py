"""The network as a folder for Hugging Face transformers, with its own code."""

import json
import shutil
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from . import preprocess
from .isolated_run import run_alone
from .source import PLAIN_VIT, Source, standing_alone

MODULE, GREY_MODULE = 'modeling_tas_lora.py', 'image_processing_tas_lora.py'
_RESAMPLE = dict(nearest=0, lanczos=1, bilinear=2, bicubic=3, box=4, hamming=5)  # Pillow's numbers
_LOAD = """
from transformers import AutoModelForImageClassification
model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True).eval()
net = lambda images: model(pixel_values=images).logits
"""


def write(source: Source, folder: Path) -> None:
    """Write config, code, weights and card; for 1 or 3 channels also the image processor's config.

    Networks trained on BGR are converted to RGB.

    Raises:
        UserError: If the channel order is unknown.
    """
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
        _write_json(folder / 'preprocessor_config.json', _processor(source, mean, std))
    if channels == 1:
        shutil.copy(here.with_name('transformers_grey.py'), folder / GREY_MODULE)


def run(folder: Path, batches: list[Tensor]) -> list[Tensor]:
    """Logits of each batch, by ``AutoModelForImageClassification`` in a separate process."""
    if json.loads((folder / 'config.json').read_text('utf-8'))['is_reversed']:
        batches = [images.flip(1) for images in batches]
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


def _processor(source: Source, mean: list[float], std: list[float]) -> dict:
    """Config of transformers' CLIP processor, which resizes, crops, and scales values to 0..1."""
    side, edge = source.network['img_size'], preprocess.resized_edge(source)
    kind = dict(image_processor_type='CLIPImageProcessor')
    if source.network['in_channels'] == 1:
        name = 'TasLoraGreyImageProcessor'
        auto = dict(AutoImageProcessor=f'{GREY_MODULE.removesuffix(".py")}.{name}')
        kind = dict(image_processor_type=name, auto_map=auto)
    return kind | dict(
        do_convert_rgb=source.network['in_channels'] == 3,
        do_resize=True,
        size=dict(height=side, width=side) if edge is None else dict(shortest_edge=edge),
        resample=_RESAMPLE[preprocess.interpolation(source)],
        do_center_crop=True,
        crop_size=dict(height=side, width=side),
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=mean,
        image_std=std,
    )


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + '\n', 'utf-8')
