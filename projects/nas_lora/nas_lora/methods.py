"""The compared methods, and the names of their runs."""

from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from tas_lora.config import load_config

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
METHODS = {  # by the config's name after nuclei_
    'full': 'full fine-tuning',
    'decoder': 'decoder only',
    'lora': 'LoRA',
    'conv_lora': 'Conv-LoRA',
    'adapter': 'adapter',
    'vpt': 'visual prompt tuning',
    'nas_lora': 'NAS-LoRA (ratio 3/3, T_B 5)',
    'nas_pc_lora': 'NAS-PC-LoRA, ratio 2/3',
    'nas_pc_third': 'NAS-PC-LoRA, ratio 1/3',
    'nas_darts': 'NAS-LoRA, operations of DARTS',
    'nas_tb0': 'NAS-LoRA, T_B 0',
    'nas_tb10': 'NAS-LoRA, T_B 10',
    'uniform': 'uniform mixture',
    'random': 'random operation',
    'nas_fold': 'NAS-LoRA without max pooling',
    'nas_token': 'NAS-LoRA, none and skip only',
}


@dataclass(frozen=True)
class Run:
    """One training.

    Args:
        method: A name in :data:`METHODS`.
        seed: Seed of the adapters' initial weights and of the order of images.
        rate: Learning rate of the weights, overriding the config's.
    """

    method: str
    seed: int
    rate: float | None = None

    @property
    def name(self) -> str:
        """Name of the run's record and folder."""
        rate = '' if self.rate is None else f'_lr{self.rate:g}'
        return f'{self.method}{rate}_seed{self.seed}'

    def config(self, data_root: str, pretrained: str, options: dict | None = None) -> Config:
        """Config of the run.

        Args:
            data_root: Folder of nuclei, with train, val and test.
            pretrained: Checkpoint of the tiny SAM.
            options: More options, by dotted name.

        Raises:
            UserError: If an option is not known.
        """
        cfg = load_config(CONFIGS / f'nuclei_{self.method}.py', options)
        changes = {'randomness.seed': self.seed, 'model.model.pretrained': str(pretrained)}
        changes |= {
            f'{part}_dataloader.dataset.data_root': f'{data_root}/{part}'
            for part in ('train', 'val', 'test')
        }
        if self.rate is not None:
            place = 'weights.' * ('weights' in cfg.optim_wrapper)
            changes[f'optim_wrapper.{place}optimizer.lr'] = self.rate
        cfg.merge_from_dict(changes)
        return cfg
