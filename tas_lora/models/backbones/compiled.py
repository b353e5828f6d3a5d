"""Compiled branches of blocks."""

from functools import partial
from itertools import cycle, islice

import torch
from torch import nn

from ...structures import SearchSpace, Subnet


def compile_branches(blocks: nn.ModuleList) -> None:
    """Run ``attention`` and ``mlp`` of all blocks through ``torch.compile``.

    They are compiled as functions of the class, so that blocks of the same widths share the code.
    Drop path is in neither: its rate differs by block, and would be compiled in.
    """
    # 8 shapes by default, too few for any space: T with three patch sizes has 108, and evaluation
    # its own. torch has this setting for the process alone.
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, 512)
    kind = type(blocks[0])
    attention = torch.compile(kind.attention, dynamic=False)
    mlp = torch.compile(kind.mlp, dynamic=False)
    for block in blocks:
        block.attention, block.mlp = partial(attention, block), partial(mlp, block)


def covering_subnets(space: SearchSpace) -> list[Subnet]:
    """The fewest subnets of ``space`` that show each block all its shapes.

    A branch is compiled for its own widths alone, so that heads and MLP ratios go through their
    choices side by side: AutoFormer-T needs 3 x max(2, 2) subnets, all of the largest depth.
    """
    depth, choices = max(space.depth), (space.num_heads, space.mlp_ratio)
    pairs = list(islice(zip(*map(cycle, choices), strict=True), max(map(len, choices))))
    return [
        Subnet(width, [heads] * depth, [ratio] * depth, patch_size)
        for patch_size in space.patch_size or (None,)
        for width in space.embed_dim
        for heads, ratio in pairs
    ]
