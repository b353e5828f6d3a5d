# A space for 8x8 images that trains in a minute or two on two CPU cores: 16 patches, heads 16 wide.
space = dict(
    embed_dim=[24, 32, 40],
    depth=[2, 3, 4],
    num_heads=[2, 3],
    mlp_ratio=[2.0, 4.0],
)
model = dict(
    type='tas_lora.SupernetClassifier',
    backbone=dict(
        type='tas_lora.ElasticViT',
        arch=dict(embed_dim=40, num_heads=[3] * 4, mlp_ratio=[4.0] * 4),
        img_size=8,
        patch_size=2,
        in_channels=1,
        head_dim=16,
        max_relative_position=3,
        init_std=0.1,  # AutoFormer's 0.02 is too small at these widths
    ),
    head=dict(type='tas_lora.ElasticClsHead', num_classes=10, init_std=0.1),
)
