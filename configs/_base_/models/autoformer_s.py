# AutoFormer-S: the search space and its supernet.
space = dict(
    embed_dim=[320, 384, 448],
    depth=[12, 13, 14],
    num_heads=[5, 6, 7],
    mlp_ratio=[3.0, 3.5, 4.0],
)
model = dict(
    type='tas_lora.SupernetClassifier',
    backbone=dict(
        type='tas_lora.ElasticViT',
        arch=dict(embed_dim=448, num_heads=[7] * 14, mlp_ratio=[4.0] * 14),
        drop_path_rate=0.1,
    ),
    head=dict(
        type='tas_lora.ElasticClsHead',
        num_classes=1000,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
