"""The network as a ``torch.export`` program, of any batch size; needs torch alone."""

import json
from pathlib import Path

import torch
from torch import Tensor

from .source import Source

FILE = 'model.pt2'
EXTRA = 'architecture.json'


def write(source: Source, folder: Path) -> None:
    """Write ``model.pt2``; ``torch.export.load(path).module()`` maps images to logits.

    ``architecture.json`` is inside: ``extra = {'architecture.json': ''}``, given to ``load`` as
    ``extra_files``, holds it afterwards.
    """
    batch = torch.export.Dim('batch', min=1, max=2**16)
    images = source.random_images(2)  # not 1, which would be taken for a constant
    with torch.no_grad():
        program = torch.export.export(source.net, (images,), dynamic_shapes=({0: batch},))
    for node in program.graph.nodes:
        node.meta.pop('stack_trace', None)  # where in which source file it is from
    text = json.dumps(source.description, indent=2)
    torch.export.save(program, folder / FILE, extra_files={EXTRA: text})


@torch.no_grad()
def run(folder: Path, batches: list[Tensor]) -> list[Tensor]:
    """Logits of batches of images."""
    net = torch.export.load(folder / FILE).module()
    return [net(images) for images in batches]
