"""Compiled branches of blocks."""

from functools import partial

import torch
from torch import nn


def compile_branches(blocks: nn.ModuleList) -> None:
    """Run ``attention`` and ``mlp`` of all blocks through ``torch.compile``.

    They are compiled as functions of the class, so that blocks of the same widths share the code.
    Drop path is in neither: its rate differs by block, and would be compiled in.
    """
    # 8 shapes by default, too few for any space; torch has this setting for the process alone.
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, 64)
    kind = type(blocks[0])
    attention = torch.compile(kind.attention, dynamic=False)
    mlp = torch.compile(kind.mlp, dynamic=False)
    for block in blocks:
        block.attention, block.mlp = partial(attention, block), partial(mlp, block)
