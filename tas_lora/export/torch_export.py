"""The network as a ``torch.export`` program for any batch size; needs only torch."""

import json
from pathlib import Path

import torch
from torch import Tensor

from .source import Source

FILE = 'model.pt2'


def write(source: Source, folder: Path) -> None:
    """Write ``model.pt2``; ``torch.export.load(path).module()`` maps images to logits.

    The file contains ``architecture.json``: pass ``extra = {'architecture.json': ''}`` to ``load``
    as ``extra_files``, and read it from there.
    """
    batch = torch.export.Dim('batch', min=1, max=2**16)
    images = source.random_images(2)  # a batch size of 1 would become a constant
    with torch.no_grad():
        program = torch.export.export(source.net, (images,), dynamic_shapes=({0: batch},))
    for node in program.graph.nodes:
        node.meta.pop('stack_trace', None)  # source locations
    extra = {'architecture.json': json.dumps(source.description, indent=2)}
    torch.export.save(program, folder / FILE, extra_files=extra)


@torch.no_grad()
def run(folder: Path, batches: list[Tensor]) -> list[Tensor]:
    """Logits of each batch of images."""
    net = torch.export.load(folder / FILE).module()
    return [net(images) for images in batches]
