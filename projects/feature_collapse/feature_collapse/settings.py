"""The config of a net: its file, seeded, stretched, and started from where it should."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mmengine.config import Config

from tas_lora import Subnet, apis

from .plan import METHODS, Net

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
_HORIZONS = ('begin', 'end', 'max_epochs', 'router_warmup_epochs')  # in epochs


@dataclass(frozen=True)
class Study:
    """What one run of the experiment is given.

    Args:
        results: Folder of the records.
        work: Folder of checkpoints.
        data_root: Folder of the images.
        subnets: The subnets all nets are compared on.
        options: Overrides of all configs, as ``--cfg-options``.
        scale: Factor on the epochs of all trainings.
        images: How many images of each set are measured at most; all if None.
    """

    results: Path
    work: Path
    data_root: str = 'data/fashion_mnist'
    subnets: tuple[Subnet, ...] = ()
    options: dict = field(default_factory=dict)
    scale: float = 1.0
    images: int | None = None

    def folder(self, net: Net) -> Path:
        """Where a net's checkpoints are."""
        return self.work / net.name

    def weights(self, net: Net) -> Path:
        """Where a net's weights are, once it is trained."""
        return self.folder(net) / 'weights.safetensors'

    def config(self, net: Net) -> Config:
        """All that decides the course of a training, and where its images and files are."""
        cfg = load(METHODS[net.method].config, self.data_root, self.options)
        stretch_epochs(cfg, self.scale * net.stretch)
        if net.rate is not None:
            wrapper = cfg.optim_wrapper
            wrapper.get('experts', wrapper).optimizer.lr = net.rate
        cfg.randomness = dict(seed=net.init_seed)
        cfg.train_cfg.seed = net.seed
        if net.subnet is not None:
            subnet = self.subnets[net.subnet].to_dict()
            cfg.train_cfg.strategy = dict(type='FixedSubnet', subnet=subnet)
        if net.start is not None:
            cfg.load_from = str(self.weights(net.start))
        cfg.work_dir = str(self.folder(net))
        cfg.experiment_name = net.name  # names MMEngine's log buffers: no two nets may share it
        return cfg


def load(name: str, data_root: str, options: dict | None = None) -> Config:
    """One of the project's configs, on the images in ``data_root``."""
    cfg = apis.load_config(CONFIGS / f'{name}.py', options)
    for loader in ('train_dataloader', 'heldout_dataloader', 'val_dataloader', 'test_dataloader'):
        for node in _dicts(cfg[loader]):
            if 'data_root' in node:
                node.data_root = data_root
    return cfg


def stretch_epochs(cfg: Config, factor: float) -> None:
    """Multiply the epochs of a training, its warm-ups and schedules.

    What is not 0 stays at least 1 epoch, the whole at least 2.
    """
    total = cfg.train_cfg.max_epochs

    def stretched(epochs: int) -> int:
        return max(0 if epochs == 0 else 1 + (epochs == total), round(epochs * factor))

    if factor != 1:
        for section in ('train_cfg', 'param_scheduler', 'custom_hooks'):
            for node in _dicts(cfg.get(section)):
                node.update({key: stretched(node[key]) for key in _HORIZONS if key in node})
                if 'periods' in node:
                    node.periods = [stretched(period) for period in node.periods]
                if 'T_max' in node:
                    node.T_max = node.end - node.begin


def _dicts(node) -> Iterator[dict]:
    """All dicts inside ``node``."""
    if isinstance(node, dict):
        yield node
    if isinstance(node, (dict, list)):
        for child in node.values() if isinstance(node, dict) else node:
            yield from _dicts(child)
