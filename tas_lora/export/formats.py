"""All export formats, and which of them can be written with the packages installed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from ..errors import UserError
from . import huggingface, mmpretrain, onnx, safetensors_format, timm, torch_export
from .examples import Examples
from .source import PLAIN_VIT, Source


@dataclass(frozen=True)
class Format:
    """A file format for networks.

    Args:
        name: Name on the command line, and of the sub-folder in the output folder.
        write: Writes the files into an empty folder.
        run: Reads the files and returns the logits of each batch of images.
        prepare: Prepares image files for the network as the format's users would, (B, channels,
            side, side); None if the format leaves that to them.
        reads_files: Whether ``prepare`` reads files in the format's own way, and so cannot read
            those written from arrays of a data set.
        file: A file that identifies a folder as this format.
        load: Python code for the model card that loads the network from the folder DIR.
        packages: Packages needed in addition to the toolkit.
        card: File name of the model card, if the format has one.
        root: Whether the files go into the output folder itself.
    """

    name: str
    write: Callable[[Source, Path], None]
    run: Callable[[Path, list[Tensor]], list[Tensor]]
    file: str
    load: str
    prepare: Callable[[Path, Examples], Tensor] | None = None
    reads_files: bool = False
    packages: tuple[str, ...] = ()
    card: str = ''
    root: bool = False

    @property
    def folder(self) -> str:
        """Path of the files, relative to the output folder."""
        return '' if self.root else self.name

    def is_in(self, out_dir: str | Path) -> bool:
        """Whether an output folder contains this format."""
        return Path(out_dir, self.folder, self.file).is_file()

    def advice(self) -> str | None:
        """What to install before this format can be written; None if nothing is missing."""
        missing = [package for package in self.packages if find_spec(package) is None]
        if not missing:
            return None
        return f'{self.name} needs {", ".join(missing)}: pip install "tas-lora[{self.name}]"'


FORMATS = (
    Format(
        'safetensors',
        safetensors_format.write,
        safetensors_format.run,
        file='architecture.json',
        load="from plain_vit import load_plain_vit; net, _ = load_plain_vit('DIR')",
        card=safetensors_format.CARD,
        root=True,
    ),
    Format(
        'onnx',
        onnx.write,
        onnx.run,
        file=onnx.FILE,
        load=f"onnxruntime.InferenceSession('DIR/{onnx.FILE}').run(None, {{'images': images}})",
        packages=('onnx', 'onnxscript', 'onnxruntime'),
    ),
    Format(
        'torch_export',
        torch_export.write,
        torch_export.run,
        file=torch_export.FILE,
        load=f"net = torch.export.load('DIR/{torch_export.FILE}').module()",
    ),
    Format(
        'mmpretrain',
        mmpretrain.write,
        mmpretrain.run,
        prepare=mmpretrain.prepare,
        reads_files=True,
        file=mmpretrain.CHECKPOINT,
        load="net = mmpretrain.get_model('DIR/config.py', pretrained=True)",
    ),
    Format(
        'timm',
        timm.write,
        timm.run,
        prepare=timm.prepare,
        file=timm.MODULE,
        load="sys.path.insert(0, 'DIR'); import tas_lora_vit; "
        "net = timm.create_model('tas_lora_vit', pretrained=True).eval().bake()",
        packages=('timm',),
    ),
    Format(
        'huggingface',
        huggingface.write,
        huggingface.run,
        prepare=huggingface.prepare,
        file=huggingface.MODULE,
        load='net = transformers.AutoModelForImageClassification.from_pretrained('
        "'DIR', trust_remote_code=True)",
        packages=('transformers',),
        card='README.md',
    ),
)
ROOT = FORMATS[0]
ROOT_FILES = ('weights.safetensors', 'architecture.json', PLAIN_VIT.name, safetensors_format.CARD)


def find_formats(names: Sequence[str]) -> tuple[list[Format], list[str]]:
    """Look up formats by name.

    Args:
        names: Names in :data:`FORMATS`, or 'all' for those whose packages are installed.

    Returns:
        The formats; and with 'all', one line for each format left out: what to install.

    Raises:
        UserError: If a name is unknown, or a package that its format needs is missing.
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
    advice = {each: each.advice() for each in FORMATS}
    return [each for each in FORMATS if not advice[each]], [*filter(None, advice.values())]
