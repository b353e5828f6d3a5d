"""What all stages of a shrink need."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from .. import apis
from ..structures import Subnet
from .configs import config
from .images import ImageFolder
from .ledger import Ledger
from .progress import Count, Meter
from .request import Request

_TRAINS = ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler')
_TRAINS += ('val_dataloader', 'val_cfg', 'val_evaluator')


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

    def tested(
        self,
        stage: str,
        config: str,
        weights: str | Path,
        subnets: Mapping[str, Subnet],
        held_out: bool = False,
    ) -> dict[str, float]:
        """Top-1 of subnets in %, on test images, or with ``held_out`` on those of the search.

        Args:
            stage: The stage that asks.
            config: Config of the network.
            weights: File of its weights.
            subnets: Subnets by name.
            held_out: As above.
        """
        cfg, name = self.load(config), Path(config).stem
        if held_out:
            cfg.test_dataloader = cfg.val_dataloader
        cfg.update(dict.fromkeys(_TRAINS))
        cfg.work_dir, cfg.experiment_name = self.path(stage, name), f'{stage}_{name}'
        as_dicts = {name: subnet.to_dict() for name, subnet in subnets.items()}
        cfg.test_cfg = dict(type='tas_lora.SubnetTestLoop', subnets=as_dicts)
        metrics = apis.evaluate(cfg, weights, hooks=self.count(stage))
        return {name: metrics[f'{name}/accuracy/top1'] for name in subnets}
