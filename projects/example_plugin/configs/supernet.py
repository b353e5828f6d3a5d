"""A supernet for your own search space, on your own images.

python $TOOLS/train.py configs/supernet.py
"""

_base_ = ['_base_/data.py', '_base_/runtime.py']

space = dict(embed_dim=[32, 48], depth=[2, 3], num_heads=[2, 3], mlp_ratio=[2.0, 4.0])
model = dict(
    type='tas_lora.SupernetClassifier',
    backbone=dict(
        type='tas_lora.ElasticViT',
        arch=dict(embed_dim=48, num_heads=[3] * 3, mlp_ratio=[4.0] * 3),  # the space's largest
        img_size={{_base_.img_size}},
        patch_size=8,
        head_dim=16,
        max_relative_position=3,
        init_std=0.1,  # AutoFormer's 0.02 is too small at these widths
    ),
    # Its weight is sliced to a subnet's width, as are those of MMPretrain's linear heads.
    head=dict(type='tas_lora.ElasticClsHead', num_classes={{_base_.num_classes}}, init_std=0.1),
)

optim_wrapper = dict(optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05))
param_scheduler = dict(type='CosineAnnealingLR', T_max=20, convert_to_iter_based=True)
train_cfg = dict(
    type='tas_lora.SubnetSamplingTrainLoop', max_epochs=20, val_interval=10, space=space, seed=0
)
subnets = dict(smallest='smallest', largest='largest')
val_cfg = dict(type='tas_lora.SubnetValLoop', space=space, subnets=subnets)
test_cfg = dict(type='tas_lora.SubnetTestLoop', space=space, subnets=subnets)
