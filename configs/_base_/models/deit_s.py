# DeiT-S: 12 blocks, 384 wide, 6 heads of 64, MLP four times as wide, no relative positions.
# tools/order.py proposes a space from what each choice costs and spoils; this one is a start.
space = dict(
    embed_dim=[384],  # narrower slices of a network that was never sliced lose nearly everything
    depth=[10, 11, 12],
    num_heads=[4, 5, 6],
    mlp_ratio=[2.0, 3.0, 4.0],
)
model = dict(
    type='tas_lora.SupernetClassifier',
    backbone=dict(
        type='tas_lora.ElasticViT',
        arch=dict(embed_dim=384, num_heads=[6] * 12, mlp_ratio=[4.0] * 12),
        img_size=224,
        patch_size=16,
        head_dim=64,
        max_relative_position=None,
        out_type='cls_token',
        style=dict(norm_eps=1e-6, qkv_bias_by_part=True),
    ),
    head=dict(type='tas_lora.ElasticClsHead', num_classes=10),
)
