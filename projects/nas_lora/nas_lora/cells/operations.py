"""The eight candidate operations of a cell, in two presets.

The paper names their kinds only: separable and dilated convolutions, pooling, skip, no connection.
They are assumed to be the primitives of DARTS (Liu et al. 2019), in one of two presets:

- ``linear``, the default: depthwise and pointwise convolution once, no ReLU, no normalisation,
  padding counted as zeros. All but max pooling are convolutions, so they fold exactly.
- ``darts``: as in the search of DARTS. ReLU, convolution and batch normalisation without scale and
  shift, twice in separable convolutions. Pooling is normalised; means do not count padding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tas_lora.checks import one_of

OPERATIONS = (
    'none',
    'max_pool_3x3',
    'avg_pool_3x3',
    'skip_connect',
    'sep_conv_3x3',
    'sep_conv_5x5',
    'dil_conv_3x3',
    'dil_conv_5x5',
)
PRESETS = ('linear', 'darts')


class Operation(nn.Module):
    """Maps (B, C, H, W) to the same shape.

    Without an ``obstacle`` it is a depthwise and then a pointwise convolution, with zero padding.

    Attributes:
        obstacle: Why it is not such a convolution; None if it is one.
        is_spatial: Whether a token sees its neighbours.
        dilation: Dilation of the depthwise kernel.
    """

    obstacle: str | None = None
    is_spatial = True
    dilation = 1

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels

    def factors(self) -> tuple[Tensor, Tensor]:
        """Depthwise (C, 1, k, k) and pointwise kernel (C, C, 1, 1), if ``obstacle`` is None."""
        raise NotImplementedError(f'{type(self).__name__} is not a convolution: {self.obstacle}')

    def kernel(self, like: Tensor) -> Tensor:
        """Pointwise times depthwise, (C, C, K, K) with K = dilation (k - 1) + 1.

        Args:
            like: A tensor with the type and device of the result.
        """
        depthwise, pointwise = self.factors()
        product = pointwise * depthwise.transpose(0, 1)
        size = self.dilation * (product.shape[-1] - 1) + 1
        kernel = product.new_zeros(*product.shape[:2], size, size)
        kernel[:, :, :: self.dilation, :: self.dilation] = product
        return kernel.to(like)


class FixedOperation(Operation):
    """The same for each channel, with nothing to train.

    Args:
        channels: C.
        size: Side of the depthwise kernel.
        value: Value of the kernel at each position.
    """

    def __init__(self, channels: int, size: int = 1, value: float = 1.0):
        super().__init__(channels)
        fixed = torch.full((channels, 1, size, size), value), torch.eye(channels)[..., None, None]
        for name, tensor in zip(('depthwise', 'pointwise'), fixed, strict=True):
            self.register_buffer(name, tensor, persistent=False)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Equal values, and the identity."""
        return self.depthwise, self.pointwise


class Nothing(FixedOperation):
    """No connection: zeros."""

    is_spatial = False

    def __init__(self, channels: int):
        super().__init__(channels, value=0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Zeros of the shape of ``x``."""
        return torch.zeros_like(x)


class Skip(FixedOperation):
    """The map itself."""

    is_spatial = False

    def forward(self, x: Tensor) -> Tensor:
        """``x``."""
        return x


class AvgPool(FixedOperation):
    """Mean of 3 x 3 tokens; tokens outside count as zeros."""

    def __init__(self, channels: int):
        super().__init__(channels, size=3)

    def forward(self, x: Tensor) -> Tensor:
        """Means, (B, C, H, W)."""
        return F.avg_pool2d(x, 3, stride=1, padding=1)

    def factors(self) -> tuple[Tensor, Tensor]:
        """A ninth at each position, and the identity."""
        # Divided here: a float32 buffer would hold a ninth in float32 also after ``double()``.
        return self.depthwise / 9, self.pointwise


class MaxPool(Operation):
    """Maximum of 3 x 3 tokens; tokens outside do not count."""

    obstacle = 'a maximum is not linear'

    def forward(self, x: Tensor) -> Tensor:
        """Maxima, (B, C, H, W)."""
        return F.max_pool2d(x, 3, stride=1, padding=1)


class SeparableConv(Operation):
    """Depthwise and then pointwise convolution, without bias.

    Args:
        channels: C.
        size: Side of the depthwise kernel, odd.
        dilation: Dilation of the depthwise kernel.
    """

    def __init__(self, channels: int, size: int, dilation: int = 1):
        super().__init__(channels)
        self.dilation = dilation
        self.depthwise = _depthwise(channels, size, dilation)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Convolved, (B, C, H, W)."""
        return self.pointwise(self.depthwise(x))

    def factors(self) -> tuple[Tensor, Tensor]:
        """The trained kernels."""
        return self.depthwise.weight, self.pointwise.weight


class DartsConv(Operation):
    """ReLU, depthwise and pointwise convolution and normalisation, ``stages`` times.

    Args:
        channels: C.
        size: Side of the depthwise kernels, odd.
        dilation: Dilation of the depthwise kernels.
        stages: Number of stages; DARTS has 2 in separable and 1 in dilated convolutions.
    """

    obstacle = 'it has ReLU and batch normalisation inside'

    def __init__(self, channels: int, size: int, dilation: int = 1, stages: int = 1):
        super().__init__(channels)
        self.stages = nn.Sequential(
            *(layer for _ in range(stages) for layer in _darts_stage(channels, size, dilation))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Convolved, (B, C, H, W)."""
        return self.stages(x)


class DartsPool(Operation):
    """Mean or maximum of 3 x 3 tokens without padding, normalised."""

    def __init__(self, channels: int, kind: str):
        super().__init__(channels)
        self.pool = (
            nn.MaxPool2d(3, stride=1, padding=1)
            if kind == 'max'
            else nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
        )
        why = 'a maximum is not linear' if kind == 'max' else 'padding is not counted at the border'
        self.obstacle = f'{why}, and batch normalisation follows'
        self.norm = nn.BatchNorm2d(channels, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        """Pooled, (B, C, H, W)."""
        return self.norm(self.pool(x))


def _depthwise(channels: int, size: int, dilation: int) -> nn.Conv2d:
    options = dict(padding=dilation * (size // 2), dilation=dilation, groups=channels, bias=False)
    return nn.Conv2d(channels, channels, size, **options)


def _darts_stage(channels: int, size: int, dilation: int) -> list[nn.Module]:
    return [
        nn.ReLU(),  # not in place: the other operations read the same map
        _depthwise(channels, size, dilation),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels, affine=False),
    ]


def build_operation(name: str, channels: int, preset: str = 'linear') -> Operation:
    """Build one of :data:`OPERATIONS` for maps with ``channels`` channels.

    Raises:
        UserError: If the operation or preset does not exist.
    """
    one_of(name, 'operations', OPERATIONS)
    one_of(preset, 'preset', PRESETS)
    if name in ('none', 'skip_connect'):
        return Nothing(channels) if name == 'none' else Skip(channels)
    kind, size, dilation = name[:3], int(name[-1]), 2 if name.startswith('dil') else 1
    if 'pool' in name:
        linear_pool = MaxPool if kind == 'max' else AvgPool
        return linear_pool(channels) if preset == 'linear' else DartsPool(channels, kind)
    if preset == 'linear':
        return SeparableConv(channels, size, dilation)
    return DartsConv(channels, size, dilation, stages=2 if kind == 'sep' else 1)
