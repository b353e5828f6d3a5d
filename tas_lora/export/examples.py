"""Images of the test data: what the test pipeline makes of them, and what an export does."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mmpretrain.registry import DATASETS
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import UserError, blame
from ..models import SupernetClassifier
from ..models.preparation import bare_name, stored_order
from .data import innermost
from .image_preparation import ImagePreparation

LEVELS = 1.0  # of 255, the mean over an image; two libraries' rounding is below, other steps above
_COUNT = 32
_MODES = ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA')  # others are read differently by each library


@dataclass(frozen=True)
class Examples:
    """Images of a test set, and what its pipeline makes of them.

    Args:
        files: Paths of the images.
        inputs: Input of the network (B, channels, side, side) in the test.
        scale: Standard deviation of pixels 0..255 by which ``inputs`` were divided, broadcast.
        mode: Pillow's mode of images with the network's channels.
        in_memory: Whether the data set has arrays; the files were written from these.
    """

    files: list[str]
    inputs: Tensor
    scale: Tensor
    mode: str
    in_memory: bool

    def prepared_by(self, description: Mapping) -> Tensor:
        """The files as ``architecture.json`` says, (B, channels, side, side)."""
        channels, side = (description['network'][name] for name in ('in_channels', 'img_size'))
        prepare = ImagePreparation(description['preprocess'], channels, side)
        return torch.stack([prepare(_opened(path)) for path in self.files])

    def largest_difference(self, found: Tensor) -> tuple[float, str]:
        """Largest mean difference of an image in levels of 255, and the file."""
        if found.shape != self.inputs.shape:
            raise UserError(f'images became {tuple(found.shape)}, not {tuple(self.inputs.shape)}')
        levels = ((found - self.inputs) * self.scale).abs().mean(dim=(1, 2, 3))
        levels = levels.nan_to_num(nan=torch.inf)
        worst = int(levels.argmax())
        return float(levels[worst]), self.files[worst]


def take_examples(
    model: SupernetClassifier, loader: Mapping | None, description: Mapping, folder: Path
) -> Examples:
    """Run the test pipeline and the data preprocessor on images from all over a data set.

    Args:
        model: The supernet.
        loader: Config of a dataloader.
        description: Content of ``architecture.json``.
        folder: Images that the data set holds in memory are written there.

    Raises:
        UserError: If there are no such images, or their pipeline fails.
    """
    if loader is None:
        raise UserError('the config has no test_dataloader')
    with blame('the data set of test_dataloader cannot be read'):
        dataset = DATASETS.build(dict(loader['dataset']))
        chosen = dict(_chosen(dataset, innermost(loader), folder))
        if not chosen:
            raise UserError('the data set of test_dataloader has no image of 8 bits per channel')
        packed = [[dataset[i]['inputs']] for i in chosen]
        with torch.no_grad():
            seen = [model.data_preprocessor(dict(inputs=one))['inputs'].cpu() for one in packed]
    channels, side = (description['network'][name] for name in ('in_channels', 'img_size'))
    shapes = {tuple(one.shape[1:]) for one in seen}
    if shapes != {(channels, side, side)}:
        raise UserError(f'the test pipeline gives images of {sorted(shapes)}')
    scale = torch.tensor(description['preprocess'].get('std') or [1.0]).view(-1, 1, 1)
    mode, in_memory = 'RGB' if channels == 3 else 'L', not _loads_files(innermost(loader))
    return Examples(list(chosen.values()), torch.cat(seen), scale, mode, in_memory)


def _chosen(dataset, config: Mapping, folder: Path) -> Iterator[tuple[int, str]]:
    """Index and file of images spread over the data set."""
    if not len(dataset):
        return
    from_files = _loads_files(config)
    for i in np.unique(np.linspace(0, len(dataset) - 1, _COUNT).astype(int)).tolist():
        info = dataset.get_data_info(i)
        path = (
            info['img_path'] if from_files else _written(info['img'], config, folder / f'{i}.png')
        )
        with Image.open(path) as image:
            if image.mode in _MODES:
                yield i, str(path)


def _loads_files(config: Mapping) -> bool:
    return 'LoadImageFromFile' in map(bare_name, config.get('pipeline') or ())


def _written(pixels: np.ndarray, config: Mapping, path: Path) -> Path:
    """Save an image that a data set holds in memory."""
    pixels = np.asarray(pixels)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim == 3 and stored_order(config) != 'RGB':
        raise UserError('the channel order of its images is not known')
    Image.fromarray(pixels).save(path)
    return path


def _opened(path: str) -> Image.Image:
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image)
