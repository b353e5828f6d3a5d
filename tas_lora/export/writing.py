"""Write formats, read each back, and keep those that give the supernet's logits."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from ..models import SupernetClassifier
from ..structures import Subnet
from .formats import Format
from .source import Source

TOLERANCE = 1e-4
_FEW = 3  # images of the second batch: whoever takes the size of a batch for granted fails


@dataclass(frozen=True)
class Outcome:
    """What came of a format.

    Args:
        name: Of the format.
        folder: Where its files are, or would be.
        difference: Largest absolute one between the supernet's logits and those read back.
        error: Why there are none; empty if there are.
    """

    name: str
    folder: Path
    difference: float = inf
    error: str = ''

    @property
    def held(self) -> bool:
        """Whether the files were kept."""
        return self.difference <= TOLERANCE

    def __str__(self) -> str:
        if self.error:
            return f'{self.name} FAILED, nothing written: {self.error}'
        what = 'Exported' if self.held else f'{self.name} NOT exported'
        verdict = f'within {TOLERANCE:.0e}' if self.held else f'ABOVE {TOLERANCE:.0e}'
        return (
            f'{what} to {self.folder}: logits of 64 random images differ from the supernet by at '
            f'most {self.difference:.1e} ({verdict})'
        )


def export_formats(
    model: SupernetClassifier, source: Source, formats: Sequence[Format], out_dir: str | Path
) -> list[Outcome]:
    """Write each format into a folder of its own, run it, and move it to its place if it agrees.

    Args:
        model: The supernet that ``source`` was cut from.
        source: The exported subnet.
        formats: What to write.
        out_dir: Folder for all; made if missing.

    Returns:
        An outcome for each; what failed is not left behind.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    images = source.random_images()
    expected = _supernet_logits(model, Subnet.from_dict(source.description['subnet']), images)
    return [_export(each, source, out_dir, images, expected) for each in formats]


@torch.no_grad()
def _supernet_logits(model: SupernetClassifier, subnet: Subnet, images: Tensor) -> Tensor:
    active = model.subnet
    model.set_subnet(subnet)
    logits = model(images.to(model.backbone.pos_embed.device), mode='tensor')
    model.set_subnet(active)
    return logits.cpu()


def _export(
    form: Format, source: Source, out_dir: Path, images: Tensor, expected: Tensor
) -> Outcome:
    target = out_dir / form.folder
    with TemporaryDirectory(prefix='.export-', dir=out_dir) as place:
        folder = Path(place, form.name)  # transformers 4 imports from no folder with a dot
        folder.mkdir()
        try:
            form.write(source, folder)
            logits = form.run(folder, [images, images[:_FEW]])
        except Exception as error:  # of whatever library writes and reads the format
            if os.environ.get('TAS_LORA_DEBUG'):
                raise
            reason = ' '.join(str(error).split())[:600]
            return Outcome(form.name, target, error=f'{type(error).__name__}: {reason}')
        pairs = zip(logits, (expected, expected[:_FEW]), strict=True)
        outcome = Outcome(form.name, target, max(_difference(*pair) for pair in pairs))
        if outcome.held:
            _move(folder, target)
    return outcome


def _difference(found: Tensor, expected: Tensor) -> float:
    """Largest one; infinite for another shape, or if one of them is not finite."""
    if found.shape != expected.shape:
        return inf
    difference = (found - expected).abs().max()
    return float(difference) if difference.isfinite() else inf


def _move(folder: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for path in sorted(folder.iterdir()):
        path.replace(target / path.name)
