"""What the experiment changes in a config before it is used: places, lengths, the space."""

from collections.abc import Iterator

import numpy as np
from mmengine.config import Config

from tas_lora import SearchSpace, Subnet
from tas_lora.models.heads import ArchitectureGroups

_HORIZONS = ('begin', 'end', 'max_epochs', 'router_warmup_epochs')  # in epochs
_LOADERS = ('train_dataloader', 'heldout_dataloader', 'val_dataloader', 'test_dataloader')
_NANO = dict(embed_dim=[16, 32], depth=[2], num_heads=[2], mlp_ratio=[1.0, 4.0])
SPACES = dict(
    nano=_NANO,
    heads=_NANO | dict(num_heads=[1, 2]),
    depth=_NANO | dict(num_heads=[1, 2], depth=[2, 3]),
    wide=_NANO | dict(embed_dim=[16, 48], num_heads=[1, 3]),
    search=_NANO | dict(num_heads=[1, 2], mlp_ratio=[1.0, 2.0, 4.0], depth=[2, 3]),
)


def drawn_subnets(space: str) -> tuple[Subnet, ...]:
    """The six distinct subnets of one of ``SPACES`` that all methods are compared on."""
    return tuple(SearchSpace(**SPACES[space]).sample_distinct(6, np.random.default_rng(0)))


def set_data_root(cfg: Config, data_root: str) -> None:
    """Read all images from ``data_root``."""
    for loader in _LOADERS:
        for node in _dicts(cfg.get(loader)):
            if 'data_root' in node:
                node.data_root = data_root


def set_space(cfg: Config, name: str) -> None:
    """Put one of ``SPACES`` in place of the config's; K becomes its number of groups.

    Experts of a grouping of its own, or of none, stay as many as they are.
    """
    space = SPACES[name]
    cfg.space = cfg.train_cfg.space = space
    for section in (cfg.val_cfg, cfg.test_cfg):
        section.space = space
    cfg.model.backbone.arch = SearchSpace(**space).largest().to_dict()
    router = cfg.model.get('router')
    if router is not None:
        router.space = space
        attributes = router.get('attributes', ('num_heads', 'mlp_ratio', 'embed_dim'))
        if cfg.model.backbone.mole.num_experts > 1 and 'grouping' not in router:
            groups = ArchitectureGroups(SearchSpace(**space), attributes)
            cfg.model.backbone.mole.num_experts = len(groups)


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
