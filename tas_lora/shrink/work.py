"""What all stages of a shrink need."""

from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from .. import apis
from .configs import config
from .images import ImageFolder
from .ledger import Ledger
from .progress import Count, Meter
from .request import Request


@dataclass
class Work:
    """What all stages need."""

    request: Request
    images: ImageFolder
    ledger: Ledger
    meter: Meter

    @property
    def folder(self) -> Path:
        """Where all is written."""
        return self.request.folder

    def path(self, *parts: str) -> str:
        """A path in the folder."""
        return str(self.folder.joinpath(*parts))

    def write(self, stage: str, template: str, **values) -> Path:
        """Write the config of a stage."""
        file = f'{template}.py'
        own = dict(path=self.path(file), work_dir=self.path(stage), seed=self.request.seed)
        return self.ledger.write_config(stage, file, config(template, **own, **values))

    def load(self, name: str | Path) -> Config:
        """Read a config of the folder; it trains with as many workers as are asked for now."""
        cfg = apis.load_config(self.folder / name)
        if cfg.get('train_dataloader'):
            cfg.train_dataloader.num_workers = self.request.workers
        return cfg

    def count(self, stage: str, per_image: float = 1.0) -> list[Count]:
        """Hooks that report progress."""
        return [Count(self.meter, stage, per_image)]

    def found(self, stage: str) -> dict:
        """What an earlier stage has found."""
        return self.ledger.result(stage)
