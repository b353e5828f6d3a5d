"""The config of a net: its file, seeded, stretched, and started from where it should."""

from dataclasses import dataclass, field
from pathlib import Path

from mmengine.config import Config

from tas_lora import Subnet, apis

from .edits import set_data_root, set_space, stretch_epochs
from .plan import METHODS, Net
from .records import Records

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'


@dataclass(frozen=True)
class Study:
    """What one run of the experiment is given.

    Args:
        results: Folder of the gathered records.
        work: Folder of checkpoints, and of records until they are gathered.
        data_root: Folder of the images.
        subnets: The subnets all nets are compared on.
        options: Overrides of all configs, as ``--cfg-options``.
        scale: Factor on the epochs of all trainings.
        first: Further factor on those that start from scratch.
        space: Name of the space in ``edits.SPACES``.
        images: How many images of each set are measured at most; all if None.
    """

    results: Path
    work: Path
    data_root: str = 'data/fashion_mnist'
    subnets: tuple[Subnet, ...] = ()
    options: dict = field(default_factory=dict)
    scale: float = 1.0
    first: float = 1.0
    space: str = 'nano'
    images: int | None = None

    @property
    def records(self) -> Records:
        """What is known of its nets."""
        return Records(self.results, self.work)

    def folder(self, net: Net) -> Path:
        """Where a net's checkpoints are."""
        return self.work / net.name

    def weights(self, net: Net) -> Path:
        """Where a net's weights are, once it is trained."""
        return self.folder(net) / 'weights.safetensors'

    def config(self, net: Net) -> Config:
        """All that decides the course of a training, and where its images and files are."""
        cfg = load(METHODS[net.method].config, self.data_root, self.options, self.space)
        own = self.first if net.start is None else net.stretch
        stretch_epochs(cfg, self.scale * own)
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


def load(name: str, data_root: str, options: dict | None = None, space: str = 'nano') -> Config:
    """One of the project's configs, on the images in ``data_root``, of one of ``SPACES``."""
    cfg = apis.load_config(CONFIGS / f'{name}.py', options, ('heldout_dataloader',))
    set_data_root(cfg, data_root)
    if space != 'nano':
        set_space(cfg, space)
    return cfg
