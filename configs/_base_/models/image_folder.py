# A space for 32x32 images that trains in minutes on two CPU cores: 16 patches, heads 16 wide.
space = dict(
    embed_dim=[32, 48, 64],
    depth=[3, 4, 5],
    num_heads=[2, 3],
    mlp_ratio=[2.0, 4.0],
)
blocks = max(space['depth'])
model = dict(
    type='tas_lora.SupernetClassifier',
    backbone=dict(
        type='tas_lora.ElasticViT',
        arch=dict(  # the supernet is as large as its largest subnet
            embed_dim=max(space['embed_dim']),
            num_heads=[max(space['num_heads'])] * blocks,
            mlp_ratio=[max(space['mlp_ratio'])] * blocks,
        ),
        patch_size=8,  # a divisor of img_size; half of it means four times the patches and the time
        in_channels=3,
        head_dim=16,
        max_relative_position=3,  # no offset of a 4x4 grid is clipped
        init_std=0.05,  # AutoFormer's 0.02 is too small at these widths
    ),
    head=dict(type='tas_lora.ElasticClsHead', init_std=0.05),
)
