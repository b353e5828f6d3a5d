# A space for 28x28 images that trains in minutes on two CPU cores: 16 patches, heads 16 wide.
space = dict(
    embed_dim=[32, 48, 64],
    depth=[2, 3, 4, 5],
    num_heads=[1, 2, 4],
    mlp_ratio=[1.0, 2.0, 4.0],
)
model = dict(
    type='tas_lora.SupernetClassifier',
    backbone=dict(
        type='tas_lora.ElasticViT',
        arch=dict(embed_dim=64, num_heads=[4] * 5, mlp_ratio=[4.0] * 5),
        img_size=28,
        patch_size=7,
        in_channels=1,
        head_dim=16,
        max_relative_position=3,
        init_std=0.1,  # AutoFormer's 0.02 is too small at these widths
    ),
    head=dict(type='tas_lora.ElasticClsHead', num_classes=10, init_std=0.1),
)
