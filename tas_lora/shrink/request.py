"""What a user asks of ``tools/shrink.py``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from ..checks import boolean, inside, natural, one_of, positive
from ..errors import UserError
from ..export import find_formats
from ..ordering import inputs
from ..ordering.damage import COSTS
from ..provenance import sha256

WAYS = ('all', 'experts', 'one_lora', 'both')
_FREE = ('workers', 'scratch', 'formats')  # may change between two starts


@dataclass(frozen=True)
class Request:
    """A pretrained network, images, limits, and how much work is to be spent.

    Args:
        source: 'timm:NAME', 'hf:FOLDER' or 'mmpretrain:NAME'.
        data: Folder with ``train/CLASS/*``, ``test/CLASS/*`` and maybe ``val/CLASS/*``.
        limits: ``macs`` and ``params``, up to 1 as a share of the original's; ``latency`` in ms of
            one image on this machine's CPU.
        out: Folder to write to.
        checkpoint: Weights of the source, if not its library's own.
        way: What is trained: 'all', 'experts', 'one_lora' or 'both'.
        epochs: Of the training of all sizes; at least 2, as one warms up.
        finetune_epochs: Of the original's training, by default ``epochs``.
        polish_epochs: Of the found subnet's own training, by default half of ``epochs``.
        batch_size: Images of a step.
        img_size: Side of the images, by default the source's.
        seed: Of all draws.
        workers: Processes that read training images.
        population: Subnets of a generation of the search.
        generations: Generations of the search.
        batches: Training batches that the order is scored on.
        sizes: Random subnets that are tested for the page.
        multiple: All widths are multiples of it.
        formats: Of the export, besides safetensors; 'all' are those that are installed.
        flip: Mirror half of the training images.
        amp: Train in bfloat16, where this machine has arithmetic for it.
        scratch: Also train the found architecture from random weights, to compare.
        new_head: Fine-tune a new head, although the source has one for as many classes.

    Raises:
        UserError: If a value is not allowed.
    """

    source: str
    data: str
    limits: Mapping[str, float]
    out: str
    checkpoint: str | None = None
    way: str = 'all'
    epochs: int = 30
    finetune_epochs: int | None = None
    polish_epochs: int | None = None
    batch_size: int = 64
    img_size: int | None = None
    seed: int = 0
    workers: int = 1
    population: int = 50
    generations: int = 20
    batches: int = 8
    sizes: int = 6
    multiple: int = 32
    formats: Sequence[str] = ('all',)
    flip: bool = True
    amp: bool = False
    scratch: bool = True
    new_head: bool = False

    def __post_init__(self):
        one_of(self.way, 'way', WAYS)
        for name in ('batch_size', 'population', 'generations', 'batches', 'sizes'):
            positive(getattr(self, name), name, int, most=10**6)
        lengths = dict(finetune_epochs=self.tuned, polish_epochs=self.polished)
        for name, value in dict(epochs=self.epochs, **lengths).items():
            if positive(value, name, int, most=10**6) < 2:
                raise UserError('must be 2 or more, as the first one warms up, got 1', name)
        if self.population < 4:
            raise UserError(f'must be 4 or more, got {self.population}', 'population')
        if self.img_size is not None:
            positive(self.img_size, 'img_size', int, most=10**5)
        positive(self.multiple, 'multiple', int, most=4096)
        natural(self.seed, 'seed', most=2**31)
        natural(self.workers, 'workers', most=1000)
        for name in ('flip', 'amp', 'scratch', 'new_head'):
            boolean(getattr(self, name), name)
        _check_limits(self.limits)
        find_formats(self.formats)
        if self.checkpoint is not None and not Path(self.checkpoint).is_file():
            raise UserError(f'{self.checkpoint} is not a file', 'checkpoint')

    @property
    def tuned(self) -> int:
        """Epochs of the original's training, if it has no head for these classes."""
        return self.epochs if self.finetune_epochs is None else self.finetune_epochs

    @property
    def polished(self) -> int:
        """Epochs of the found subnet's own training."""
        return max(2, self.epochs // 2) if self.polish_epochs is None else self.polish_epochs

    @property
    def folder(self) -> Path:
        """Where all is written, absolute."""
        return Path(self.out).resolve()

    def identity(self) -> dict:
        """What a later start in the same folder must have in common with this one."""
        same = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _FREE}
        same |= dict(data=str(Path(self.data).resolve()), out=str(self.folder))
        same['limits'] = dict(sorted(self.limits.items()))
        if self.checkpoint is not None:
            same['checkpoint'] = sha256(self.checkpoint)
        return same


def read_limits(texts: Sequence[str]) -> dict[str, float]:
    """Parse ``COST=NUMBER`` arguments.

    Raises:
        UserError: If one has another form, or a cost is given twice.
    """
    limits = inputs.read_limits(texts, 'COST=NUMBER, such as macs=0.5 or latency=20')
    with inside('--limit'):
        _check_limits(limits)
    return limits


def _check_limits(limits: Mapping[str, float]) -> None:
    if not limits:
        raise UserError('no limit is given; give one, such as macs=0.5')
    for name, value in limits.items():
        if name not in (*COSTS, 'latency'):
            raise UserError(f'{name} is unknown; choose from macs, params and latency (ms)')
        positive(value, name, float, most=10**15)
