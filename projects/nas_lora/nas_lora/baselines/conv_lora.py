"""Conv-LoRA (Zhong et al., ICLR 2024, arXiv 2401.17868), the closest method to compare with."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tas_lora.checks import bounded, positive

from ..cells.linear import check_linear
from ..cells.token_maps import TokenMaps
from ..registry import MODELS


class NoisyGate(nn.Module):
    """Picks one expert per map by noisy scores of its mean token (Shazeer et al. 2017).

    The chosen expert has weight 1, a softmax over a single score. So only the balance loss trains
    the gate, as in the published code.

    Args:
        channels: Width r of the tokens.
        num_experts: Number of experts K.
    """

    def __init__(self, channels: int, num_experts: int):
        super().__init__()
        self.score = nn.Parameter(torch.zeros(channels, num_experts))
        self.noise = nn.Parameter(torch.zeros(channels, num_experts))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Choose an expert per map.

        Args:
            x: Maps (B, r, H, W).

        Returns:
            The expert of each map (B,) and, in training, the balance loss (): the squared
            coefficient of variation, over experts, of their probabilities summed over the maps.
        """
        pooled = x.mean(dim=(2, 3))
        clean = pooled @ self.score
        if not self.training or clean.shape[1] == 1:
            return clean.argmax(1), None
        std = F.softplus(pooled @ self.noise) + 1e-2
        noisy = clean + torch.randn_like(clean) * std
        load = chance_of_first(clean, noisy, std).sum(0)
        return noisy.argmax(1), load.var() / (load.mean() ** 2 + 1e-10)


def chance_of_first(clean: Tensor, noisy: Tensor, std: Tensor) -> Tensor:
    """Probability that each score is the highest if its own noise is drawn again.

    Args:
        clean: Scores without noise, (B, K), K at least 2.
        noisy: Scores with noise.
        std: Standard deviation of the noise.

    Returns:
        (B, K), differentiable in all three.
    """
    first, second = noisy.topk(2, dim=1).values.split(1, dim=1)
    highest_other = torch.where(noisy == first, second, first)
    return torch.special.ndtr((clean - highest_other) / std)


@MODELS.register_module()
class ConvLoRALinear(nn.Module):
    """h = W0 x + Wd (z + E_k(z)), z = We x, with one expert E_k per map.

    Expert k enlarges the map k times, applies a 3 x 3 convolution, and shrinks it again. The choice
    depends on the input, so it can be neither folded nor merged. Each window is a map, as is each
    class token and the like, which is none of those whose use of the experts is balanced.

    Args:
        base: The layer to adapt, fused or not. It is frozen.
        rank: Rank r; 3 in the paper.
        num_experts: Number of experts, with scales 1, 2, ...; 8 in the paper.
        balance: Factor of the balance loss; 0.01 as in the published code. The model must add this
            loss, see :func:`nas_lora.vits.adapt.auxiliary_losses`.
        grid: As in :class:`TokenMaps`.
        extra_tokens: As in :class:`TokenMaps`.

    Raises:
        UserError: If an argument is out of range, or ``base`` is not a linear layer.
    """

    def __init__(
        self,
        base: nn.Linear,
        rank: int = 3,
        num_experts: int = 8,
        balance: float = 0.01,
        grid: int | Sequence[int] | None = None,
        extra_tokens: int = 0,
    ):
        super().__init__()
        self.token_maps = TokenMaps(grid, extra_tokens)
        self.base = check_linear(base, 'ConvLoRALinear').requires_grad_(False)
        positive(rank, 'rank', int, most=min(base.in_features, base.out_features))
        positive(num_experts, 'num_experts', int, most=64)
        self.balance = bounded(balance, 'balance', most=1e9)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.gate = NoisyGate(rank, num_experts)
        self.experts = nn.ModuleList(
            nn.Conv2d(rank, rank, 3, padding=1) for _ in range(num_experts)
        )
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)
        for expert in self.experts:
            nn.init.zeros_(expert.bias)
        self._balance_loss: Tensor | None = None
        self.to(base.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, I) or (B, N, I) to the same shape with O channels.

        Raises:
            UserError: If N tokens do not form the grid.
        """
        z = self.down(x)
        mixed = [self._on_map(each.permute(0, 3, 1, 2)) for each in self.token_maps.split(z)]
        *_, (_, loss) = mixed  # of the grid
        self._balance_loss = None if loss is None else self.balance * loss
        maps = [each.permute(0, 2, 3, 1) for each, _ in mixed]
        return self.base(x) + self.up(self.token_maps.join(maps, z))

    def _on_map(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        chosen, loss = self.gate(z)
        return z + self._of_experts(z, chosen), loss

    def take_balance_loss(self) -> Tensor | None:
        """Return and clear the balance loss of the last forward in training."""
        loss, self._balance_loss = self._balance_loss, None
        return loss

    def _of_experts(self, z: Tensor, chosen: Tensor) -> Tensor:
        result = torch.zeros_like(z)
        for i, expert in enumerate(self.experts):
            rows = (chosen == i).nonzero()[:, 0]
            if len(rows):
                result = result.index_copy(0, rows, _at_scale(expert, z[rows], i + 1).to(z.dtype))
        return result


def _at_scale(expert: nn.Module, z: Tensor, scale: int) -> Tensor:
    """GELU of a convolution on the map enlarged ``scale`` times, resized back."""
    if scale == 1:
        return F.gelu(expert(z))
    size = z.shape[-2:]
    z = F.interpolate(z, scale_factor=float(scale), mode='bicubic', align_corners=False)
    return F.interpolate(F.gelu(expert(z)), size, mode='bicubic', align_corners=False)
