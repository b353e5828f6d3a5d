"""What every format is made from: an exported subnet, read back, and what is known of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..models.plain_vit import PlainViT, load_plain_vit

PLAIN_VIT = Path(__file__).parents[1] / 'models' / 'plain_vit.py'


@dataclass(frozen=True)
class Source:
    """An exported subnet.

    Args:
        folder: Holds ``weights.safetensors`` and ``architecture.json``.
        net: The network of these, in evaluation mode.
        description: Content of the JSON.
        card: The model card, Markdown.
        data: ``train_dataloader``, ``test_dataloader``, ``test_evaluator`` and
            ``custom_imports`` of the supernet's config, as far as it has them.
        opset: ONNX opset.
    """

    folder: Path
    net: PlainViT
    description: dict
    card: str = ''
    data: Mapping = field(default_factory=dict)
    opset: int = 18

    @classmethod
    def read(cls, folder: str | Path, **known) -> 'Source':
        """Of a folder that ``export_subnet`` wrote; raises as ``load_plain_vit``."""
        net, description = load_plain_vit(folder)
        return cls(Path(folder), net, description, **known)

    @property
    def network(self) -> dict:
        """Arguments of ``PlainViT``."""
        return self.description['network']

    def random_images(self, count: int = 64) -> Tensor:
        """Normal noise (count, channels, side, side), the same at each call."""
        side = self.network['img_size']
        shape = (count, self.network['in_channels'], side, side)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def standing_alone(path: Path, package: str) -> str:
    """Source of a module of this package that imports ``PlainViT``, to be put next to it.

    Args:
        path: The module.
        package: What comes before ``plain_vit`` there: '' for a folder on ``sys.path``, '.' for a
            package.

    Raises:
        ValueError: If it does not import from there in one place.
    """
    ours, text = 'from ..models.plain_vit import', path.read_text('utf-8')
    if text.count(ours) != 1:
        raise ValueError(f'{path} imports from plain_vit {text.count(ours)} times, expected once')
    return text.replace(ours, f'from {package}plain_vit import')
