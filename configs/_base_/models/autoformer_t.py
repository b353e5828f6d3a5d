# AutoFormer-T: the search space and its supernet.
space = dict(
    embed_dim=[192, 216, 240],
    depth=[12, 13, 14],
    num_heads=[3, 4],
    mlp_ratio=[3.5, 4.0],
)
model = dict(
    type='tas_lora.SupernetClassifier',
    backbone=dict(
        type='tas_lora.ElasticViT',
        arch=dict(embed_dim=256, num_heads=[4] * 14, mlp_ratio=[4.0] * 14),
        drop_path_rate=0.1,
    ),
    head=dict(
        type='tas_lora.ElasticClsHead',
        num_classes=1000,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
