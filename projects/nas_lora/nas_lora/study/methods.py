"""The study: its data sets, the methods that it compares, and the config of each training."""

from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from tas_lora.config import load_config

from ..cells.operations import OPERATIONS

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'


@dataclass(frozen=True)
class DataSet:
    """Images of a task, with the network that is adapted to it.

    Args:
        label: For tables.
        config: Name of the config, which trains NAS-LoRA.
        metric: The test score that is compared.
    """

    label: str
    config: str
    metric: str = 'iou'


SETS = dict(
    nuclei=DataSet('nuclei', 'dinov2_nuclei'),
    stamps=DataSet('stamps', 'dinov2_stamps'),
    emoji=DataSet('emoji', 'dinov2_emoji'),
    classes=DataSet('emoji classes', 'dinov2_emoji_classes', 'accuracy/top1'),
    sam=DataSet('nuclei, tiny SAM', 'sam_tiny_nuclei'),
)


@dataclass(frozen=True)
class Method:
    """What is trained in the frozen encoder.

    Args:
        label: For tables.
        adapter: Options of the adapter with its ``type``; None for none.
        targets: Layers that it adapts, see :func:`nas_lora.vits.adapt.adapt`.
        layers: Blocks that it adapts.
        weight_share: T_B, the share of epochs that train weights only, if the cell is searched.
        epoch_share: The share of the set's epochs that it is trained.
        rate_of: The method whose learning rate it has; by default its own.
        trains_all: Whether the encoder is not frozen.
    """

    label: str
    adapter: dict | None = None
    targets: str = 'qkv'
    layers: str = 'all'
    weight_share: float = 1 / 4
    epoch_share: float = 1.0
    rate_of: str | None = None
    trains_all: bool = False

    @property
    def is_searched(self) -> bool:
        """Whether it has architecture parameters that are trained."""
        adapter = self.adapter or {}
        is_cell = adapter.get('type') == 'nas_lora.NASLoRALinear'
        return is_cell and adapter.get('choice', 'searched') == 'searched'


def _adapter(name: str, **options) -> dict:
    return dict(type=f'nas_lora.{name}', **options)


def _nas(label: str, options: dict = {}, **others) -> Method:  # noqa: B006  it is only read
    adapter = _adapter('NASLoRALinear', **options)
    return Method(label, adapter, rate_of='nas_lora', **others)


def _without(*kinds: str) -> list[str]:
    return [name for name in OPERATIONS if not any(kind in name for kind in kinds)]


_ALONE = [name for name in OPERATIONS if name != 'none']
# The number of trained weights in ViT-S is within 10 % of NAS-LoRA's for all adapters.
METHODS = {
    'full': Method('full fine-tuning', trains_all=True),
    'decoder': Method('decoder or head only'),
    'lora': Method('LoRA, rank 5', _adapter('LoRALinear', rank=5)),
    'conv_lora': Method('Conv-LoRA, rank 4', _adapter('ConvLoRALinear', rank=4)),
    'adapter': Method('adapter', _adapter('BottleneckAdapter', width=4), ('attention', 'ffn')),
    'vpt': Method('visual prompts', _adapter('PromptedTokens', num_prompts=20), 'block'),
    'nas_lora': Method('NAS-LoRA', _adapter('NASLoRALinear')),
    'uniform': _nas('uniform mixture', dict(choice='uniform')),
    # A searched cell trains its weights with 1/4 + 3/8 of all batches, alpha with the others.
    'uniform_fewer': _nas(
        'uniform mixture, 5/8 of the steps', dict(choice='uniform'), epoch_share=5 / 8
    ),
    'random': _nas('random operation in each cell', dict(choice='random')),
    'tb0': _nas('T_B 0', weight_share=0),
    'tb8': _nas('T_B 1/8', weight_share=1 / 8),
    'tb2': _nas('T_B 1/2', weight_share=1 / 2),
    'ratio1': _nas('ratio 1/3', dict(ratio=1 / 3)),
    'ratio2': _nas('ratio 2/3 (NAS-PC-LoRA)', dict(ratio=2 / 3)),
    'rank1': _nas('rank 1', dict(rank=1)),
    'rank8': _nas('rank 8', dict(rank=8)),
    'first': _nas('first half of the layers', layers='first_half'),
    'last': _nas('last half of the layers', layers='last_half'),
    'no_conv': _nas('without convolutions', dict(operations=_without('conv'))),
    'no_pool': _nas('without pooling', dict(operations=_without('pool'))),
    **{f'only_{n}': _nas(f'{n} alone', dict(operations=[n], choice='uniform')) for n in _ALONE},
}


@dataclass(frozen=True)
class Run:
    """One training of the study.

    Args:
        data: A name in :data:`SETS`.
        method: A name in :data:`METHODS`.
        seed: Seed of the trained weights' start and of the order of images.
        rate: Learning rate of what is trained; of the encoder's weights, if all are. None for the
            config's.
        alpha: Rate of the architecture parameters, as a multiple of it.
    """

    data: str
    method: str
    seed: int
    rate: float | None = None
    alpha: float | None = None

    @property
    def name(self) -> str:
        """Name of the run's record and folder."""
        rates = dict(rate=self.rate, alpha=self.alpha)
        shown = ''.join(f'_{k}{v:g}' for k, v in rates.items() if v is not None)
        return f'{self.data}_{self.method}{shown}_seed{self.seed}'

    def config(self, options: dict | None = None) -> Config:
        """Config of the run.

        Args:
            options: More options, by dotted name.

        Raises:
            UserError: If an option is not known.
        """
        cfg = load_config(CONFIGS / f'{SETS[self.data].config}.py', options)
        method = METHODS[self.method]
        cfg.model.adapter = method.adapter
        cfg.model.targets, cfg.model.layers = method.targets, method.layers
        cfg.model.trainable = ['.*'] if method.trains_all else []
        cfg.randomness = dict(seed=self.seed)
        cfg.train_cfg.max_epochs = round(method.epoch_share * cfg.train_cfg.max_epochs)
        self._set_rates(cfg, method)
        return cfg

    def _set_rates(self, cfg: Config, method: Method) -> None:
        weights, alpha = (cfg.optim_wrapper[part].optimizer for part in ('weights', 'alpha'))
        factor = self.alpha or alpha.lr / weights.lr
        if self.rate is not None and not method.trains_all:
            weights.lr = self.rate
        alpha.lr = factor * weights.lr
        if method.is_searched:
            epochs = round(method.weight_share * cfg.train_cfg.max_epochs)
            cfg.custom_hooks = [dict(type='nas_lora.StageWiseHook', weight_epochs=epochs)]
            return
        cfg.custom_hooks = []
        wrapper = dict(type='tas_lora.SupernetOptimWrapper', optimizer=weights)
        wrapper['amp'] = cfg.optim_wrapper.get('amp', False)
        if method.trains_all and self.rate is not None:
            part = cfg.model.get('part', 'encoder')
            keys = {f'model.{part}': dict(lr_mult=self.rate / weights.lr)}
            wrapper['paramwise_cfg'] = dict(custom_keys=keys)
        cfg.optim_wrapper = wrapper
