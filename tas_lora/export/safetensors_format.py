"""The network as safetensors, architecture and model card, read by ``plain_vit.py`` alone."""

import shutil
from pathlib import Path

import torch
from torch import Tensor

from ..models.plain_vit import load_plain_vit
from .source import PLAIN_VIT, Source

CARD = 'MODEL_CARD.md'


def write(source: Source, folder: Path) -> None:
    """Copy the export, and ``plain_vit.py``, which reads it without the toolkit; write the card."""
    for name in ('weights.safetensors', 'architecture.json'):
        shutil.copy(source.folder / name, folder)
    shutil.copy(PLAIN_VIT, folder)
    (folder / CARD).write_text(source.card, 'utf-8')


@torch.no_grad()
def run(folder: Path, batches: list[Tensor]) -> list[Tensor]:
    """Logits of batches of images."""
    net, _ = load_plain_vit(folder)
    return [net(images) for images in batches]
