"""Layers whose weights are used as prefix slices (weight entanglement, AutoFormer).

An elastic layer reads its input width from its input, so only the output width is passed. At
full size it equals the ordinary layer.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def slice_weight(weight: Tensor, out_features: int, in_features: int) -> Tensor:
    """Slice ``weight`` for a subnet, as a matrix.

    Args:
        weight: (O, I), or (P, O, I) for P parts (query, key, value).
        out_features: Rows o kept of each part.
        in_features: Columns i kept.

    Returns:
        (o, i), a view, or (P o, i).
    """
    # A slice of everything would cost its backward a copy of the whole gradient.
    if out_features < weight.shape[-2]:
        weight = weight[..., :out_features, :]
    if in_features < weight.shape[-1]:
        weight = weight[..., :in_features]
    return weight.flatten(0, -2)


def slice_parts(values: Tensor, width: int, parts: int) -> Tensor:
    """The first channels of each of the ``parts`` of (..., C), together ``width``."""
    return values.unflatten(-1, (parts, -1))[..., : width // parts].flatten(-2)


class ElasticLinear(nn.Module):
    """Linear layer of which a subnet uses the first rows and columns.

    With ``parts`` P > 1 it holds P maps of the same input, sliced alike, and concatenates their
    outputs. By default their biases follow AutoFormer: they are one vector of which the first P o
    entries are used in order, so the entry of a channel depends on o. With the attribute
    ``bias_by_part`` each is sliced like its rows.

    Args:
        in_features: Full input width I.
        out_features: Full output width O of a part.
        parts: Number of parts P.
        init_std: Standard deviation of the initial weights.
    """

    bias_by_part = False

    def __init__(self, in_features: int, out_features: int, parts: int = 1, init_std: float = 0.02):
        super().__init__()
        self.in_features, self.out_features, self.parts = in_features, out_features, parts
        shape = (out_features, in_features) if parts == 1 else (parts, out_features, in_features)
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.zeros(parts * out_features))
        nn.init.trunc_normal_(self.weight, std=init_std)

    def forward(
        self, x: Tensor, out_features: int | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """Map (..., i) to (..., P o), where o is ``out_features`` or the full O.

        ``bias`` (P o,) replaces the layer's own.
        """
        out_features = out_features or self.out_features
        weight = self.sliced_weight(out_features, x.shape[-1])
        return F.linear(x, weight, self.sliced_bias(out_features) if bias is None else bias)

    def sliced_weight(self, out_features: int, in_features: int) -> Tensor:
        """The weight in use at these widths, (P o, i)."""
        return slice_weight(self.weight, out_features, in_features)

    def sliced_bias(self, out_features: int) -> Tensor:
        """The bias in use at this width, (P o,)."""
        if self.bias_by_part:
            return self.bias.view(self.parts, -1)[:, :out_features].flatten()
        return self.bias[: self.parts * out_features]

    def extra_repr(self) -> str:
        """Sizes, for ``print(model)``."""
        parts = f', parts={self.parts}' if self.parts > 1 else ''
        return f'in_features={self.in_features}, out_features={self.out_features}{parts}'


class ElasticLayerNorm(nn.LayerNorm):
    """LayerNorm over the active channels, (..., c) -> (..., c)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., c) to itself."""
        width = x.shape[-1]
        return F.layer_norm(x, (width,), self.weight[:width], self.bias[:width], self.eps)


class ElasticPatchEmbed(nn.Conv2d):
    """Patch embedding, sliced in output channels and in both sides of a patch.

    Args:
        in_channels: Image channels.
        embed_dim: Full width C.
        patch_size: Side of the largest patch P in pixels.
    """

    def __init__(self, in_channels: int, embed_dim: int, patch_size: int):
        super().__init__(in_channels, embed_dim, patch_size, stride=patch_size)

    def forward(self, images: Tensor, embed_dim: int, patch_size: int) -> Tensor:
        """Map (B, channels, side, side) to (B, patches, embed_dim), row by row."""
        weight = self.sliced_weight(embed_dim, patch_size)
        x = F.conv2d(images, weight, self.bias[:embed_dim], stride=patch_size)
        return x.flatten(2).transpose(1, 2)

    def sliced_weight(self, embed_dim: int, patch_size: int) -> Tensor:
        """The kernels in use, (embed_dim, channels, patch_size, patch_size)."""
        return self.weight[:embed_dim, :, :patch_size, :patch_size]
