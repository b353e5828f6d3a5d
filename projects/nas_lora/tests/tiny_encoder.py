"""A ViTSAM that runs in milliseconds, and plain formulas to compare its adapters with."""

import torch
from mmpretrain.models import ViTSAM
from nas_lora.cells.cell import SearchCell
from nas_lora.cells.linear import NASLoRALinear
from torch import Tensor, nn

LINEAR = (  # all but max pooling
    'none',
    'avg_pool_3x3',
    'skip_connect',
    'sep_conv_3x3',
    'sep_conv_5x5',
    'dil_conv_3x3',
    'dil_conv_5x5',
)
ENCODER = dict(
    type='mmpretrain.ViTSAM',
    arch=dict(
        embed_dims=64,
        num_layers=4,
        num_heads=4,
        feedforward_channels=128,
        global_attn_indexes=[1, 3],
    ),
    img_size=64,
    patch_size=8,
    out_channels=32,
    window_size=4,
)


def tiny_encoder(window_size: int = 4) -> ViTSAM:
    """In evaluation mode and float64, with positions that are not zero."""
    options = {key: value for key, value in ENCODER.items() if key != 'type'}
    encoder = ViTSAM(**options | dict(window_size=window_size)).double()
    for name, value in encoder.named_parameters():
        if 'pos' in name:
            nn.init.normal_(value, std=0.1)
    encoder.eval()  # returns None
    return encoder


def images(number: int = 2) -> Tensor:
    return torch.randn(number, 3, 64, 64, dtype=torch.float64)


def wake(model: nn.Module, alpha: float = 1.0) -> None:
    """Give up-projections and architecture parameters values, as after some training."""
    for module in model.modules():
        if isinstance(module, NASLoRALinear):
            for branch in module.branches.values():
                nn.init.normal_(branch.up.weight, std=0.3)
        if isinstance(module, SearchCell) and module.is_searched:
            nn.init.normal_(module.alpha, std=alpha)


def shifted(x: Tensor, dy: int, dx: int, outside: float = 0.0) -> Tensor:
    """What each token (B, C, H, W) sees ``dy`` below and ``dx`` to its right."""
    result = torch.full_like(x, outside)
    height, width = x.shape[-2:]
    for row in range(height):
        for column in range(width):
            if 0 <= row + dy < height and 0 <= column + dx < width:
                result[..., row, column] = x[..., row + dy, column + dx]
    return result


def neighbours(x: Tensor, outside: float = 0.0) -> list[Tensor]:
    return [shifted(x, dy, dx, outside) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]


def convolved(x: Tensor, kernel: Tensor, dilation: int = 1) -> Tensor:
    """A dense kernel (O, C, K, K) on zero padding, as a sum over shifts."""
    reach = kernel.shape[-1] // 2
    total = 0
    for i in range(kernel.shape[-1]):
        for j in range(kernel.shape[-1]):
            seen = shifted(x, dilation * (i - reach), dilation * (j - reach))
            total = total + torch.einsum('oc,bchw->bohw', kernel[:, :, i, j], seen)
    return total


def separable(x: Tensor, depthwise: Tensor, pointwise: Tensor, dilation: int) -> Tensor:
    """A kernel (C, 1, K, K) for each channel, then a matrix (C, C, 1, 1)."""
    each = [
        convolved(x[:, c : c + 1], depthwise[c : c + 1], dilation) for c in range(len(depthwise))
    ]
    return torch.einsum('oc,bchw->bohw', pointwise[:, :, 0, 0], torch.cat(each, dim=1))


def plain_operation(name: str, operation: nn.Module, x: Tensor) -> Tensor:
    """An operation of the linear preset by its definition."""
    if name == 'none':
        return torch.zeros_like(x)
    if name == 'skip_connect':
        return x
    if name == 'avg_pool_3x3':
        return sum(neighbours(x)) / 9
    if name == 'max_pool_3x3':
        return torch.stack(neighbours(x, -torch.inf)).amax(0)
    weights = operation.depthwise.weight, operation.pointwise.weight
    assert weights[0].shape[-1] == int(name[-1])
    return separable(x, *weights, dilation=2 if name.startswith('dil') else 1)


def plain_cell(cell: SearchCell, x: Tensor, channels: int) -> Tensor:
    """sum_i e^alpha_i / (sum_j e^alpha_j) O_i on the first channels, the others as they are."""
    chances = cell.alpha.exp() / cell.alpha.exp().sum()
    inside = x[:, :channels]
    mixed = sum(
        chance * plain_operation(name, operation, inside)
        for chance, name, operation in zip(chances, cell.names, cell.operations, strict=True)
    )
    return torch.cat([mixed, x[:, channels:]], dim=1)
