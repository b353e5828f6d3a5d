"""The formats there are, and which of them can be written here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from ..errors import UserError
from . import huggingface, mmpretrain, onnx, plain, program, timm
from .source import Source


@dataclass(frozen=True)
class Format:
    """A way to write a network down.

    Args:
        name: As the command line knows it.
        write: Writes files into an empty folder.
        run: Reads them there, and gives the logits of batches of images.
        packages: What has to be installed beside the toolkit.
        extra: The extra of the toolkit that brings them.
        folder: Where the files go, below the output folder.
    """

    name: str
    write: Callable[[Source, Path], None]
    run: Callable[[Path, list[Tensor]], list[Tensor]]
    packages: tuple[str, ...] = ()
    extra: str = ''
    folder: str = ''

    def advice(self) -> str | None:
        """What to install before this format can be written; None if nothing."""
        missing = [package for package in self.packages if find_spec(package) is None]
        if not missing:
            return None
        return f'{self.name} needs {", ".join(missing)}: pip install "tas-lora[{self.extra}]"'


_ONNX = ('onnx', 'onnxscript', 'onnxruntime')
FORMATS = (
    Format('safetensors', plain.write, plain.run),
    Format('onnx', onnx.write, onnx.run, _ONNX, extra='onnx', folder='onnx'),
    Format('torch_export', program.write, program.run, folder='torch_export'),
    Format('mmpretrain', mmpretrain.write, mmpretrain.run, folder='mmpretrain'),
    Format('timm', timm.write, timm.run, ('timm',), extra='timm', folder='timm'),
    Format(
        'huggingface',
        huggingface.write,
        huggingface.run,
        ('transformers',),
        extra='huggingface',
        folder='huggingface',
    ),
)


def find_formats(names: Sequence[str]) -> tuple[list[Format], list[str]]:
    """Formats by name.

    Args:
        names: Of :data:`FORMATS`, or 'all': every one that can be written here.

    Returns:
        The formats, and with 'all' what to install for the others, a line for each.

    Raises:
        UserError: If a name is unknown, or what its format needs is not installed.
    """
    known = {known.name: known for known in FORMATS}
    unknown = [name for name in names if name not in (*known, 'all')]
    if unknown or not names:
        raise UserError(f'--formats must be all or some of {", ".join(known)}, got {names}')
    for name in set(names) - {'all'}:
        if advice := known[name].advice():
            raise UserError(advice)
    if 'all' not in names:
        return [known[name] for name in dict.fromkeys(names)], []
    advices = [each.advice() for each in FORMATS]
    ready = [each for each, advice in zip(FORMATS, advices, strict=True) if advice is None]
    return ready, [advice for advice in advices if advice]
