"""Deep visual prompt tuning (VPT, Jia et al. 2022)."""

import math

import torch
from mmpretrain.models.backbones.vit_sam import Attention, add_decomposed_rel_pos
from torch import Tensor, nn

from tas_lora.checks import positive
from tas_lora.errors import UserError

from ..registry import MODELS

_TABLES = ('attn.rel_pos_h', 'attn.key_rows')  # of ViTSAM and of AutoFormer's style


@MODELS.register_module()
class PromptedTokens(nn.Module):
    """A block with prompts behind its tokens: [y, _] = L([x, P]), deep VPT.

    P trained tokens join the input of the block, and their outputs are dropped. On every block
    this is VPT-Deep. The block itself does both, so hooks on it, such as those by which
    transformers records hidden states, see no prompts.

    Args:
        base: A whole block of tokens (B, N, C), its first argument and its output, or the first of
            its outputs. It is frozen.
        num_prompts: Number P of prompts in the block.

    Raises:
        UserError: If ``num_prompts`` is out of range, or ``base`` is no block or has positions of
            its own.
    """

    def __init__(self, base: nn.Module, num_prompts: int = 5):
        super().__init__()
        width = _check_block(base)
        self.prompts = initial_prompts(num_prompts, width, next(base.parameters()))
        self.base = base.requires_grad_(False)
        self._without_prompts, base.forward = base.forward, self._with_prompts

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor | tuple:
        """The output of the block for tokens (B, N, C); a tuple if the block returns one."""
        return self.base(x, *args, **kwargs)

    def _with_prompts(self, x: Tensor, *args, **kwargs) -> Tensor | tuple:
        prompts = self.prompts.to(x.dtype).expand(x.shape[0], -1, -1)
        y = self._without_prompts(torch.cat([x, prompts], dim=1), *args, **kwargs)
        if isinstance(y, tuple):
            return y[0][:, : x.shape[1]], *y[1:]
        return y[:, : x.shape[1]]


def _check_block(block: nn.Module) -> int:
    """The width of a block's tokens."""
    kinds = [type(module).__name__.lower() for module in block.modules()]
    tables = [name for name, _ in block.named_parameters() if name.endswith(_TABLES)]
    if tables or any('rope' in kind for kind in kinds):
        raise UserError(
            f'targets: PromptedTokens cannot wrap a {type(block).__name__} with relative '
            'positions, where a prompt has no place; in ViTSAM, use nas_lora.PromptedAttention '
            "with targets='attention'"
        )
    norms = [module for module in block.modules() if isinstance(module, nn.LayerNorm)]
    if not norms:
        raise UserError(
            f'targets: PromptedTokens wraps a whole block, got a {type(block).__name__}; '
            "use targets='block'"
        )
    return norms[0].normalized_shape[-1]


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
                f"{type(base).__name__}; use targets='attention'"
            )
        self.base = base.requires_grad_(False)
        self.prompts = initial_prompts(num_prompts, base.qkv.in_features, base.qkv.weight)

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


def initial_prompts(number: int, width: int, like: Tensor) -> nn.Parameter:
    """Prompts (P, C), uniform as VPT's for patches of 16 x 16; of the device and type of ``like``.

    Raises:
        UserError: If ``number`` is out of range.
    """
    bound = math.sqrt(6 / (3 * 16**2 + width))
    prompts = torch.empty(positive(number, 'num_prompts', int, most=10_000), width)
    return nn.Parameter(prompts.uniform_(-bound, bound).to(like))
