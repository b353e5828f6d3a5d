"""The source of every format: an exported subnet, read back, with its description and data."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..models.plain_vit import PlainViT, load_plain_vit
from .examples import Examples

PLAIN_VIT = Path(__file__).parents[1] / 'models' / 'plain_vit.py'


@dataclass(frozen=True)
class Source:
    """An exported subnet.

    Args:
        folder: Folder of ``weights.safetensors`` and ``architecture.json``.
        net: The network, in evaluation mode.
        description: Content of ``architecture.json``.
        card: The model card in Markdown.
        data: ``train_dataloader``, ``test_dataloader``, ``test_evaluator``,
            ``data_preprocessor`` and ``custom_imports`` of the supernet's config, where it has
            them.
        opset: ONNX opset.
        examples: Images of the test data, if there are any.
    """

    folder: Path
    net: PlainViT
    description: dict
    card: str = ''
    data: Mapping = field(default_factory=dict)
    opset: int = 18
    examples: Examples | None = None

    @classmethod
    def read(cls, folder: str | Path, **known) -> 'Source':
        """Read a folder that ``export_subnet`` wrote. Raises the errors of ``load_plain_vit``."""
        net, description = load_plain_vit(folder)
        return cls(Path(folder), net, description, **known)

    @property
    def network(self) -> dict:
        """Arguments of ``PlainViT``."""
        return self.description['network']

    def random_images(self, count: int = 64) -> Tensor:
        """Normal noise (count, channels, side, side), the same in every call."""
        side = self.network['img_size']
        shape = (count, self.network['in_channels'], side, side)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def standing_alone(path: Path, package: str) -> str:
    """Source code of a module of ours, changed to import one other from its own folder.

    Args:
        path: The module; it imports from ``..models.plain_vit``, say.
        package: Prefix of ``plain_vit``: '' for a folder on ``sys.path``, '.' for a package.

    Raises:
        ValueError: Unless the module has exactly one such import.
    """
    text, count = re.subn(
        r'from \.\.\w+\.(\w+) import', rf'from {package}\1 import', path.read_text('utf-8')
    )
    if count != 1:
        raise ValueError(f'{path} imports {count} times from us, expected once')
    return text
