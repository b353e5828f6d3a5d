"""A supernet that runs in milliseconds, and the published sizes of AutoFormer."""

from itertools import product
from pathlib import Path

import torch
from hypothesis import settings
from hypothesis import strategies as st
from mmengine.config import Config

from tas_lora import SearchSpace, Subnet, load_supernet

SPACE_DICT = dict(embed_dim=[16, 24], depth=[2, 3], num_heads=[1, 2], mlp_ratio=[1.0, 2.0])
SPACE = SearchSpace(**SPACE_DICT)
IMAGE = dict(img_size=8, patch_size=2, in_channels=1, head_dim=8, max_relative_position=2)
CLASSES = 5
MOLE = dict(num_experts=8, rank=2)

# The subnets that AutoFormer's authors found.
SEARCHED = dict(
    t=Subnet(
        192,
        [3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 4, 3, 3],
        [3.5, 3.5, 3, 3.5, 3, 3, 4, 4, 3.5, 4, 3.5, 4, 3.5],
    ),
    s=Subnet(
        384,
        [6, 6, 5, 7, 5, 5, 5, 6, 6, 7, 7, 6, 7],
        [3, 3.5, 3, 3.5, 4, 4, 4, 4, 4, 4, 4, 3.5, 4],
    ),
    b=Subnet(
        576,
        [9, 9, 9, 9, 9, 10, 9, 9, 10, 9, 10, 9, 9, 10],
        [3.5, 3.5, 4, 3.5, 4, 3.5, 3.5, 3, 4, 4, 3, 4, 3, 3.5],
    ),
)

repeatable = settings(derandomize=True, deadline=None, max_examples=40)


def autoformer(name: str) -> tuple[SearchSpace, Subnet]:
    """Space and supernet of AutoFormer-T, -S or -B, from our configs."""
    path = f'configs/_base_/models/autoformer_{name}.py'
    config = Config.fromfile(Path(__file__).parent.parent / path)
    return SearchSpace(**config.space), Subnet.from_dict(config.model.backbone.arch)


def tiny_config(mole: bool = True, arch: Subnet | None = None, **kwargs) -> dict:
    """Config of a supernet just as large as ``SPACE`` needs it, or as ``arch``."""
    arch = arch or SPACE.largest()
    backbone = dict(type='tas_lora.ElasticViT', arch=arch.to_dict(), init_std=0.2, **IMAGE)
    head = dict(type='tas_lora.ElasticClsHead', num_classes=CLASSES, in_channels=arch.embed_dim)
    if mole:
        backbone['mole'] = MOLE
        kwargs['router'] = dict(type='tas_lora.LSTMRouterHead', space=SPACE_DICT)
    return dict(
        model=dict(type='tas_lora.SupernetClassifier', backbone=backbone, head=head) | kwargs
    )


def tiny_model(mole: bool = True, arch: Subnet | None = None, **kwargs):
    """The model of :func:`tiny_config`, the same at each call."""
    torch.manual_seed(0)
    return load_supernet(tiny_config(mole, arch, **kwargs))


def randomize(module: torch.nn.Module, std: float = 0.5) -> torch.nn.Module:
    """Give all parameters normal values; zeros would hide what they do."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=std)
    return module


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def every(space: SearchSpace) -> list[Subnet]:
    """All subnets of a space, by enumeration."""
    return [
        Subnet(width, heads, ratios)
        for width, depth in product(space.embed_dim, space.depth)
        for heads in product(space.num_heads, repeat=depth)
        for ratios in product(space.mlp_ratio, repeat=depth)
    ]


def _choices(values, most: int = 3):
    return st.lists(st.sampled_from(values), min_size=1, max_size=most, unique=True)


def spaces(depths=(1, 2, 3, 4)) -> st.SearchStrategy[SearchSpace]:
    """Small search spaces."""
    return st.builds(
        SearchSpace,
        embed_dim=_choices([8, 16, 24, 40]),
        depth=_choices(depths),
        num_heads=_choices([1, 2, 3, 4]),
        mlp_ratio=_choices([0.5, 1.0, 2.0, 3.5]),
    )
