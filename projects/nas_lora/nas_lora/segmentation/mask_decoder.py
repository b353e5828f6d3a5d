"""SAM's mask decoder without prompts: an image's features in, one mask out."""

from math import pi

import torch
from mmpretrain.models.utils import LayerNorm2d
from torch import Tensor, nn

from tas_lora import UserError
from tas_lora.checks import positive

from ..registry import MODELS
from .two_way_transformer import TwoWayTransformer

_TOKENS = 4  # mask tokens: one for an unambiguous prompt, three for an ambiguous one


class HyperMLP(nn.Module):
    """Three linear layers with ReLUs between: from a mask's token to the weights of its pixels.

    Args:
        embed_dim: Channels D of the token.
        out_dim: Channels of the pixels.
    """

    def __init__(self, embed_dim: int, out_dim: int):
        super().__init__()
        dims = (embed_dim, embed_dim, embed_dim, out_dim)
        self.layers = nn.ModuleList(map(nn.Linear, dims[:-1], dims[1:]))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) to (B, out_dim)."""
        *hidden, last = self.layers
        for layer in hidden:
            x = layer(x).relu()
        return last(x)


@MODELS.register_module()
class MaskDecoder(nn.Module):
    """The mask decoder of Segment Anything (arXiv 2304.02643, appendix A), for one mask.

    There are no points or boxes. The learned 'no mask' embedding replaces a mask prompt and is
    added to all pixels. The output is SAM's own first mask for this prompt. All of SAM's tokens
    are kept, as they attend to each other. The modules that only its other outputs use are left
    out: the head that predicts a mask's quality, and the MLPs of the three other masks. So
    3,506,304 of 4,058,340 parameters remain (at D = 256), plus 256 of the 'no mask' embedding.
    Names are those of Meta's files.

    Args:
        embed_dim: Channels D of the features, divisible by 8.
        depth: Blocks of the transformer.
        num_heads: Its attention heads; they divide D / 2.
        mlp_dim: Width of its MLPs.
        in_channels: Channels of the encoder's map. If they are not D, a 1 x 1 convolution and a
            norm lead to D, as the first half of SAM's neck does; by default D.

    Raises:
        UserError: If a number is not a positive integer or not divisible as required.
    """

    def __init__(
        self,
        embed_dim: int = 256,
        depth: int = 2,
        num_heads: int = 8,
        mlp_dim: int = 2048,
        in_channels: int | None = None,
    ):
        super().__init__()
        positive(embed_dim, 'MaskDecoder.embed_dim', int)
        positive(depth, 'MaskDecoder.depth', int)
        positive(num_heads, 'MaskDecoder.num_heads', int)
        positive(mlp_dim, 'MaskDecoder.mlp_dim', int)
        if embed_dim % 8 or embed_dim // 2 % num_heads:
            raise UserError(
                f'MaskDecoder.embed_dim {embed_dim} must be divisible by 8, and its half by '
                f'num_heads {num_heads}; change one of them'
            )
        self.in_channels = in_channels or embed_dim
        self.neck = nn.Identity()
        if self.in_channels != embed_dim:
            project = nn.Conv2d(self.in_channels, embed_dim, 1, bias=False)
            self.neck = nn.Sequential(project, LayerNorm2d(embed_dim, eps=1e-6))
        self.iou_token = nn.Embedding(1, embed_dim)
        self.mask_tokens = nn.Embedding(_TOKENS, embed_dim)
        self.no_mask_embed = nn.Embedding(1, embed_dim)
        self.transformer = TwoWayTransformer(embed_dim, depth, num_heads, mlp_dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(embed_dim, embed_dim // 4, kernel_size=2, stride=2),
            LayerNorm2d(embed_dim // 4, eps=1e-6),
            nn.GELU(),
            nn.ConvTranspose2d(embed_dim // 4, embed_dim // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList([HyperMLP(embed_dim, embed_dim // 8)])
        # Own seed: it is not a parameter, and must not differ between runs that share weights.
        random = torch.randn(2, embed_dim // 2, generator=_seeded(), device='cpu')
        self.register_buffer('positional_encoding_gaussian_matrix', random)

    def forward(self, features: Tensor) -> Tensor:
        """Mask logits (B, 1, 4 H, 4 W) from features (B, in_channels, H, W)."""
        features = self.neck(features)
        B, _, H, W = features.shape
        tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).expand(B, -1, -1)
        pixels = (features + self.no_mask_embed.weight[..., None, None]).flatten(2).transpose(1, 2)
        tokens, pixels = self.transformer(tokens, pixels, self.positions(H, W))
        fine = self.output_upscaling(pixels.transpose(1, 2).unflatten(2, (H, W)))  # B, D/8, 4H, 4W
        weights = self.output_hypernetworks_mlps[0](tokens[:, 1])  # the first mask's token
        return torch.einsum('bd,bdhw->bhw', weights, fine)[:, None]

    def positions(self, H: int, W: int) -> Tensor:
        """Random Fourier features (1, H W, D) of the pixels' centres, from -1 to 1."""
        matrix = self.positional_encoding_gaussian_matrix
        y, x = ((torch.arange(n, device=matrix.device) + 0.5) / n * 2 - 1 for n in (H, W))
        grid = torch.stack(torch.meshgrid(y, x, indexing='ij')[::-1], dim=-1)  # H, W, (x, y)
        angles = 2 * pi * grid.to(matrix.dtype) @ matrix
        return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(0, 1)[None]


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)
