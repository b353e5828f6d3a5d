"""Other adapters with the same interface: LoRA, bottleneck adapters, visual prompts.

Conv-LoRA has its own module. Full fine-tuning and decoder only are options of ``AdaptedModel``.
"""

import math

import torch
from mmpretrain.models.backbones.vit_sam import Attention, add_decomposed_rel_pos
from mmpretrain.models.peft.lora import LoRALinear
from torch import Tensor, nn

from tas_lora.checks import bounded, positive
from tas_lora.errors import UserError

from .linear import check_linear
from .registry import MODELS


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
    return LoRALinear(base, alpha, rank, bounded(drop_rate, 'drop_rate', reached=False))


@MODELS.register_module()
class BottleneckAdapter(nn.Module):
    """y + W2 GELU(W1 y + b1) + b2 after a module with output y (Houlsby et al. 2019).

    W2 and b2 start at zero. In ViTSAM the modules are ``layers\\.\\d+\\.(attn|ffn\\.layers)``:
    attention and MLP, before the residual addition.

    Args:
        base: A module with output (..., C), where C is the width of its last linear layer. It is
            frozen.
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

    def forward(self, *args, **kwargs) -> Tensor:
        """The module's output (..., C), adapted."""
        y = self.base(*args, **kwargs)
        return y + self.up(nn.functional.gelu(self.down(y)))


@MODELS.register_module()
class PromptedAttention(nn.Module):
    """Attention of ViTSAM with prompts in addition to its tokens (deep visual prompt tuning).

    VPT (Jia et al. 2022) inserts P trained tokens before each block and drops their outputs after
    it, so tokens only attend to them. This is computed as P more keys and values in each window.
    As ViTSAM's blocks work on maps, two things differ: prompts enter after the block's first norm,
    and have no relative position.

    Args:
        base: The ``attn`` of a block. It is frozen.
        num_prompts: Number P of prompts in the block.

    Raises:
        UserError: If ``num_prompts`` is out of range or ``base`` is not ViTSAM's attention.
    """

    def __init__(self, base: Attention, num_prompts: int = 5):
        super().__init__()
        if not isinstance(base, Attention):
            raise UserError(
                f'targets: PromptedAttention adapts the attention of ViTSAM, got a '
                f"{type(base).__name__}; use targets=[r'layers\\.\\d+\\.attn']"
            )
        self.base = base.requires_grad_(False)
        width = base.qkv.in_features
        bound = math.sqrt(6 / (3 * 16**2 + width))  # VPT's, for patches of 16 x 16
        prompts = torch.empty(positive(num_prompts, 'num_prompts', int, most=10_000), width)
        self.prompts = nn.Parameter(prompts.uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        B, H, W, C = x.shape
        q, k, v = self._heads(self.base.qkv(x).reshape(B, H * W, 3, -1))
        _, prompt_k, prompt_v = self._heads(self.base.qkv(self.prompts).reshape(1, -1, 3, C))
        scores = (q * self.base.scale) @ k.transpose(-2, -1)  # (B heads, N, N)
        if self.base.use_rel_pos:
            positions = self.base.rel_pos_h, self.base.rel_pos_w
            scores = add_decomposed_rel_pos(scores, q, *positions, (H, W), (H, W))
        of_prompts = (q * self.base.scale) @ prompt_k.repeat(B, 1, 1).transpose(-2, -1)
        weights = torch.cat([of_prompts, scores], dim=-1).softmax(-1)
        y = weights @ torch.cat([prompt_v.repeat(B, 1, 1), v], dim=1)
        y = y.reshape(B, -1, H * W, C // self.base.num_heads).transpose(1, 2)
        return self.base.proj(y.reshape(B, H, W, C))

    def _heads(self, qkv: Tensor) -> Tensor:
        """(B, N, 3, C) -> q, k, v, each (B heads, N, C / heads)."""
        B, N, _, C = qkv.shape
        heads = self.base.num_heads
        return qkv.reshape(B, N, 3, heads, -1).permute(2, 0, 3, 1, 4).reshape(3, B * heads, N, -1)
