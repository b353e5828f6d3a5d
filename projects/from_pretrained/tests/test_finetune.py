"""The fine-tuned original, on made-up pictures and random weights."""

import json

import finetune
import numpy as np
import pytest
import timm
import torch
from from_pretrained import pictures
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.transforms import v2

from tas_lora import UserError

SHADES = {'dark': 60, 'light': 200}


@pytest.fixture
def data(tmp_path):
    """Two classes by brightness, six pictures of each in every split."""
    rng = np.random.default_rng(0)
    for split in ('train', *pictures.SPLITS):
        for name, shade in SHADES.items():
            folder = tmp_path / 'emoji' / split / name
            folder.mkdir(parents=True)
            for i in range(6):
                pixels = (shade + rng.integers(0, 50, (64, 64, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f'{i}.png')
    return tmp_path / 'emoji'


@pytest.mark.full
def test_saved_weights_have_the_accuracies_of_the_record(monkeypatch, tmp_path, data):
    torch.manual_seed(0)
    weights, out = tmp_path / 'random.safetensors', tmp_path / 'tuned.safetensors'
    save_file(timm.create_model(finetune.MODEL, num_classes=0).state_dict(), weights)
    command = f'finetune.py --data {data} --weights {weights} --out {out} --img-size 28'
    monkeypatch.setattr('sys.argv', [*command.split(), '--steps', '3', '--batch-size', '4'])
    finetune.main()
    record = json.loads(out.with_suffix('.json').read_text())
    model = timm.create_model(finetune.MODEL, img_size=28, num_classes=2).eval()
    model.load_state_dict(load_file(out), strict=True)
    prepare = v2.Compose(
        [
            v2.Resize((28, 28)),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(pictures.MEAN, pictures.STD),
        ]
    )
    for split, top1 in record['top1'].items():
        hits = 0
        for label, name in enumerate(SHADES):
            for path in (data / split / name).iterdir():
                logits = model(prepare(v2.functional.to_image(Image.open(path)))[None])
                hits += logits.argmax().item() == label
        assert top1 == pytest.approx(100 * hits / 12, abs=0.01)


def test_other_networks_and_sizes_are_refused(tmp_path):
    with pytest.raises(UserError, match='--img-size 57 is not a multiple of 14'):
        finetune.pretrained('none', 57, 2, 'token')
    other = timm.create_model('vit_tiny_patch16_224', num_classes=0, pretrained=False)
    save_file(other.state_dict(), tmp_path / 'tiny.safetensors')
    with pytest.raises(UserError, match='tiny.safetensors is not the backbone of vit_small'):
        finetune.pretrained(str(tmp_path / 'tiny.safetensors'), 56, 2, 'token')


def test_missing_pictures_are_named(tmp_path):
    with pytest.raises(UserError, match='emoji/train is missing; run fetch.py'):
        pictures.load_images(tmp_path / 'emoji' / 'train')
