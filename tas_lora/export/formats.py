"""The formats there are, and which of them can be written here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from ..errors import UserError
from . import huggingface, mmpretrain, onnx, safetensors_format, timm, torch_export
from .source import PLAIN_VIT, Source


@dataclass(frozen=True)
class Format:
    """A way to write a network down.

    Args:
        name: As the command line knows it, and of its folder below the output folder.
        write: Writes files into an empty folder.
        run: Reads them there, and gives the logits of batches of images.
        file: One of the files, by which a folder is known to be of this format.
        load: Python that loads the network from the folder DIR, for the model card.
        packages: What has to be installed in addition to the toolkit.
        card: File of the model card, if it has one.
        root: Whether the files go into the output folder itself.
    """

    name: str
    write: Callable[[Source, Path], None]
    run: Callable[[Path, list[Tensor]], list[Tensor]]
    file: str
    load: str
    packages: tuple[str, ...] = ()
    card: str = ''
    root: bool = False

    @property
    def folder(self) -> str:
        """Where the files go, below the output folder."""
        return '' if self.root else self.name

    def is_in(self, out_dir: str | Path) -> bool:
        """Whether an output folder holds this format."""
        return Path(out_dir, self.folder, self.file).is_file()

    def advice(self) -> str | None:
        """What to install before this format can be written; None if nothing."""
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
        file=mmpretrain.CHECKPOINT,
        load="net = mmpretrain.get_model('DIR/config.py', pretrained=True)",
    ),
    Format(
        'timm',
        timm.write,
        timm.run,
        file=timm.MODULE,
        load="sys.path.insert(0, 'DIR'); import tas_lora_vit; "
        "net = timm.create_model('tas_lora_vit', pretrained=True).eval().bake()",
        packages=('timm',),
    ),
    Format(
        'huggingface',
        huggingface.write,
        huggingface.run,
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
    advice = {each: each.advice() for each in FORMATS}
    return [each for each in FORMATS if not advice[each]], [*filter(None, advice.values())]
