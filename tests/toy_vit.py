"""A timm network that runs in milliseconds, by name, and pictures that it can learn.

python toy_vit.py TOOL ARGUMENTS... runs a tool that knows the name.
"""

import os
import runpy
import signal
import sys
from collections import Counter
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image

SIZES = dict(img_size=8, patch_size=4, embed_dim=32, depth=2, num_heads=4)
CLASSES = ('blue', 'green', 'red')
NAME = 'toy_vit'


def register() -> None:
    """Let timm know the network."""
    from timm.models import is_model, register_model
    from timm.models.vision_transformer import VisionTransformer

    def toy_vit(pretrained=False, **options):
        own = {name: options[name] for name in ('img_size', 'num_classes') if name in options}
        return VisionTransformer(**(SIZES | dict(num_classes=0) | own))

    if not is_model(NAME):
        toy_vit.__module__ = __name__  # where timm's decorator looks for the module's names
        register_model(toy_vit)


def write_weights(path: Path, images: Path | None = None, num_classes: int = 0) -> Path:
    """Random weights in a file; with ``images``, a head for them by least squares."""
    import timm

    register()
    torch.manual_seed(0)
    vit = timm.create_model(NAME, num_classes=len(CLASSES) if images else num_classes).eval()
    for value in vit.parameters():
        torch.nn.init.normal_(value, std=0.2)
    if images:
        fit_head(vit, images)
    torch.save(vit.state_dict(), path)
    return path


@torch.no_grad()
def fit_head(vit, root: Path) -> None:
    """Regress the classes of images on the features."""
    files = [(file, i) for i, name in enumerate(CLASSES) for file in (root / name).iterdir()]
    images = np.stack([np.asarray(Image.open(file)) for file, _ in files])
    mean, std = (np.array(value) for value in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
    images = torch.tensor((images - mean) / std, dtype=torch.float32).permute(0, 3, 1, 2)
    features = vit.forward_head(vit.forward_features(images), pre_logits=True)
    targets = torch.eye(len(CLASSES))[[label for _, label in files]]
    inputs = torch.cat([features, torch.ones(len(features), 1)], 1)
    found = torch.linalg.lstsq(inputs, targets).solution
    vit.head.weight.copy_(found[:-1].T)
    vit.head.bias.copy_(found[-1])


def draw(root: Path, **numbers: int) -> Path:
    """Pictures of each class by split; each class has a colour, with noise."""
    rng = np.random.default_rng(0)
    for split, count in numbers.items():
        for place, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 220, (8, 8, 3))
                pixels[..., 2 - place] += 35
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f'{i}.png')
    return root


def kill_at(stage: str, event: str, count: int) -> None:
    """Kill this process when a stage has seen so many 'images', or is to do so many 'renames'."""
    from tas_lora.shrink.progress import Meter

    begin, advance, now, seen = Meter.stage, Meter.advance, [], Counter()

    def note(name: str, kind: str, number: float) -> None:
        seen[name, kind] += number
        if seen[stage, event] >= count:
            os.kill(os.getpid(), signal.SIGKILL)

    def note_stage(meter, name: str, number: int):
        now[:] = [name]
        return begin(meter, name, number)

    def note_images(meter, name: str, images: float) -> None:
        note(name, 'images', images)
        advance(meter, name, images)

    Meter.stage, Meter.advance = note_stage, note_images
    sys.addaudithook(lambda what, _: what == 'os.rename' and now and note(now[0], 'renames', 1))


def shrink_until(request: dict, kill: str | None) -> None:
    """Shrink in this process, until its end or a kill: 'STAGE EVENT COUNT'."""
    import torch
    from rich.console import Console

    from tas_lora.shrink import Request, shrink

    torch.set_num_threads(1)
    register()
    if kill is not None:
        stage, event, count = kill.split()
        kill_at(stage, event, int(count))
    shrink(Request(**request), Console(file=StringIO()))


if __name__ == '__main__':
    if 'KILL_AT' in os.environ:
        place, kind, number = os.environ['KILL_AT'].split()
        kill_at(place, kind, int(number))
    register()
    tool, *sys.argv = sys.argv[1:2] + sys.argv[1:]
    runpy.run_path(tool, run_name='__main__')
