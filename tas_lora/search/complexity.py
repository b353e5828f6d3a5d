"""Count the parameters and FLOPs of a subnet by arithmetic; needs neither a model nor torch.

With relative positions both follow the counters of the official AutoFormer code, so limits and
tables agree with published ones. An exported subnet has exactly :func:`count_params` parameters.
"""

from ..structures import Subnet, ViTStyle

_AUTOFORMER = ViTStyle()


def count_params(
    subnet: Subnet,
    *,
    img_size: int = 224,
    patch_size: int = 16,
    in_channels: int = 3,
    num_classes: int = 1000,
    max_relative_position: int | None = 14,
    head_dim: int = 64,
    style: ViTStyle | None = None,
    feature_parts: int = 1,
) -> int:
    """Count the parameters of ``subnet``, including classifier, prefix tokens and positions.

    Those of LayerScale are not counted: an export has them in its weights.

    Args:
        subnet: The architecture.
        img_size: Side of the square input, in pixels.
        patch_size: Side of a patch, in pixels; ignored if the subnet has its own.
        in_channels: Image channels.
        num_classes: Classifier outputs; 0 for a network without classifier.
        max_relative_position: Offset R at which relative positions are clipped; None for none.
        head_dim: Width of one attention head (64 in AutoFormer).
        style: How the network is built; by default as AutoFormer's.
        feature_parts: Vectors of the network's width that the classifier takes: 2 with 'cls_avg'.
    """
    patch_size = subnet.patch_size or patch_size
    style, tables = style or _AUTOFORMER, 0
    width, prefix = subnet.embed_dim, style.num_prefix_tokens
    if max_relative_position is not None:
        tables = 4 * (2 * max_relative_position + 2) * head_dim

    def block(heads: int, hidden: int) -> int:
        inner = heads * head_dim
        qkv = 3 * inner * width + 3 * inner
        proj = inner * width + width
        mlp = width * hidden + hidden + hidden * width + width
        return qkv + tables + proj + 4 * width + mlp

    blocks = sum(map(block, subnet.num_heads, subnet.hidden_dims))
    patch_embed = width * in_channels * patch_size**2 + width
    head = (feature_parts * width + 1) * num_classes
    norms = 2 * width * (style.pre_norm + (style.final_norm != 'none'))
    positions = width * ((img_size // patch_size) ** 2 + prefix * style.prefix_positions)
    return patch_embed + blocks + norms + head + positions + width * prefix


def count_flops(
    subnet: Subnet,
    *,
    img_size: int = 224,
    patch_size: int = 16,
    in_channels: int = 3,
    num_classes: int = 1000,
    max_relative_position: int | None = 14,
    head_dim: int = 64,
    style: ViTStyle | None = None,
    feature_parts: int = 1,
) -> float:
    """Count the multiply-adds for one image; same arguments as :func:`count_params`.

    Without relative positions these are exactly those of all matrix products.

    With them, the quirks of AutoFormer's convention are kept because published figures have them:
    blocks have one token more than there are, the classifier is counted for each token, the
    relative terms use R instead of the head width, and norms and sums are counted also.
    """
    patch_size = subnet.patch_size or patch_size
    width, patches = subnet.embed_dim, (img_size // patch_size) ** 2
    prefix, reach = (style or _AUTOFORMER).num_prefix_tokens, max_relative_position
    tokens = patches + prefix
    patch_embed = patches * width * in_channels * patch_size**2
    head = feature_parts * width * num_classes

    def products(heads: int, hidden: int, tokens: int) -> int:
        inner = heads * head_dim
        return tokens * (4 * inner * width + 2 * width * hidden) + 2 * tokens * tokens * inner

    def quirks(heads: int, tokens: int) -> float:
        relative = 2 * reach * tokens * tokens + tokens * tokens / 2
        return relative + tokens * heads * head_dim / 2 + 2 * tokens * width

    blocks = tuple(zip(subnet.num_heads, subnet.hidden_dims, strict=True))
    if reach is None:
        return patch_embed + sum(products(*block, tokens) for block in blocks) + head
    counted = sum(products(*block, tokens + 1) + quirks(block[0], tokens + 1) for block in blocks)
    return patch_embed + width + tokens * width / 2 + counted + tokens * head
