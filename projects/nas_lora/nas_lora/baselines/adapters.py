"""Other adapters with the same interface: LoRA and bottleneck adapters.

Conv-LoRA and visual prompts have their own modules. Full fine-tuning and decoder only are options
of ``AdaptedModel``.
"""

from mmpretrain.models.peft.lora import LoRALinear
from torch import Tensor, nn

from tas_lora.checks import bounded, positive
from tas_lora.errors import UserError

from ..cells.linear import check_linear
from ..registry import MODELS


@MODELS.register_module(name='LoRALinear')
def lora_linear(
    base: nn.Linear, rank: int = 3, alpha: float | None = None, drop_rate: float = 0.0
) -> LoRALinear:
    """MMPretrain's LoRA around ``base``: h = W0 x + alpha / r Wd We x.

    Args:
        base: The layer to adapt; a fused qkv gets one down and one up projection.
        rank: Rank r.
        alpha: By default the rank, so that the update has factor 1 as in NAS-LoRA.
        drop_rate: Dropout before the down projection.

    Raises:
        UserError: If an argument is out of range, or ``base`` is not a linear layer.
    """
    check_linear(base, 'LoRALinear').requires_grad_(False)
    positive(rank, 'rank', int, most=min(base.in_features, base.out_features))
    alpha = rank if alpha is None else positive(alpha, 'alpha', float)
    layer = LoRALinear(base, alpha, rank, bounded(drop_rate, 'drop_rate', reached=False))
    return layer.to(base.weight)


@MODELS.register_module()
class BottleneckAdapter(nn.Module):
    """y + W2 GELU(W1 y + b1) + b2 after a module with output y (Houlsby et al. 2019).

    W2 and b2 start at zero. The modules are attention and MLP, before the residual addition:
    ``targets=('attention', 'ffn')``.

    Args:
        base: A module with (first) output (..., C), where C is the width of its last linear layer.
            It is frozen.
        width: Width of the bottleneck.

    Raises:
        UserError: If ``width`` is out of range or ``base`` has no linear layer.
    """

    def __init__(self, base: nn.Module, width: int = 8):
        super().__init__()
        linear = [module for module in base.modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise UserError(
                f'targets: BottleneckAdapter needs a module with a linear layer, got a '
                f'{type(base).__name__}; choose attention or MLP'
            )
        channels = linear[-1].out_features
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(channels, positive(width, 'width', int))
        self.up = nn.Linear(width, channels)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        for layer in (self.down, self.up):
            layer.to(linear[-1].weight)

    def forward(self, *args, **kwargs) -> Tensor | tuple:
        """The module's output (..., C), adapted; of a tuple of outputs the first."""
        y = self.base(*args, **kwargs)
        return (self._adapted(y[0]), *y[1:]) if isinstance(y, tuple) else self._adapted(y)

    def _adapted(self, y: Tensor) -> Tensor:
        return y + self.up(nn.functional.gelu(self.down(y)))
