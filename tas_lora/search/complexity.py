"""Count the parameters and FLOPs of a subnet by arithmetic; needs neither a model nor torch.

Both follow the counters of the official AutoFormer code, so limits and tables agree with published
ones. A subnet of the model uses exactly :func:`count_params` parameters.
"""

from ..structures import Subnet, ViTStyle


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
    """Count the parameters of ``subnet``, including classifier, class token and positions.

    Args:
        subnet: The architecture.
        img_size: Side of the square input, in pixels.
        patch_size: Side of a patch, in pixels; ignored if the subnet has its own.
        in_channels: Image channels.
        num_classes: Classifier outputs.
        max_relative_position: Offset R at which relative positions are clipped;
            None without them.
        head_dim: Width of one attention head (64 in AutoFormer).
        style: How the network is built; by default as AutoFormer's.
        feature_parts: Vectors of the network's width that the classifier takes.
    """
    patch_size = subnet.patch_size or patch_size
    width, patches = subnet.embed_dim, (img_size // patch_size) ** 2
    style = style or ViTStyle()
    has_tables = max_relative_position is not None
    relative_tables = 4 * (2 * max_relative_position + 2) * head_dim if has_tables else 0

    def block(heads: int, hidden: int) -> int:
        inner = heads * head_dim
        qkv = 3 * inner * width + 3 * inner
        proj = inner * width + width
        mlp = width * hidden + hidden + hidden * width + width
        return qkv + relative_tables + proj + 4 * width + mlp

    blocks = sum(map(block, subnet.num_heads, subnet.hidden_dims))
    patch_embed = width * in_channels * patch_size**2 + width
    head = feature_parts * width * num_classes + num_classes
    prefix = style.num_prefix_tokens * (2 if style.prefix_positions else 1)
    norms = style.pre_norm + (style.final_norm != 'none')
    return patch_embed + blocks + 2 * width * norms + head + width * (patches + prefix)


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
    """Count the multiply-accumulates for one image; same arguments as :func:`count_params`.

    Without relative positions these are the multiply-adds of all matrix products. With them, the
    quirks of AutoFormer's convention are kept because published figures have them: blocks have
    ``patches + 2`` tokens, the classifier is counted ``patches + 1`` times, and the relative terms
    use R instead of the head width.
    """
    patch_size = subnet.patch_size or patch_size
    width, patches = subnet.embed_dim, (img_size // patch_size) ** 2
    embedding = patches * width * in_channels * patch_size**2
    if max_relative_position is None:
        tokens = patches + (style or ViTStyle()).num_prefix_tokens
        products = (
            tokens * (4 * heads * head_dim * width + 2 * width * hidden)
            + 2 * tokens**2 * heads * head_dim
            for heads, hidden in zip(subnet.num_heads, subnet.hidden_dims, strict=True)
        )
        return float(embedding + sum(products) + feature_parts * width * num_classes)
    tokens, reach = patches + 2, max_relative_position

    def block(heads: int, hidden: int) -> float:
        inner = heads * head_dim
        norms = 2 * tokens * width
        linears = tokens * (4 * inner * width + 2 * width * hidden)
        attention = 2 * tokens * tokens * inner
        relative = 2 * reach * tokens * tokens + tokens * tokens / 2 + tokens * inner / 2
        return norms + linears + attention + relative

    positions = (patches + 1) * width / 2
    head = (patches + 1) * num_classes * width
    blocks = sum(map(block, subnet.num_heads, subnet.hidden_dims))
    return width + embedding + positions + blocks + head
