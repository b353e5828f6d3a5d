"""A supernet on your own folder of images, stage 1. The guide is docs/own_data.md.

python tools/train.py configs/folder_supernet.py

GPUs: 0, minutes on two CPU cores. Measured top-1 on letters: docs/own_data.md.
"""

_base_ = [
    '_base_/models/image_folder.py',
    '_base_/datasets/image_folder.py',
    '_base_/default_runtime.py',
]

model = dict(
    backbone=dict(img_size={{_base_.img_size}}),
    head=dict(num_classes={{_base_.data_preprocessor.num_classes}}),
)
optim_wrapper = dict(
    type='tas_lora.SupernetOptimWrapper',
    optimizer=dict(type='AdamW', lr=4e-3, weight_decay=0.05),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=2, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=28, begin=2, end=30, convert_to_iter_based=True),
]
default_hooks = dict(logger=dict(interval=10))
train_cfg = dict(
    type='tas_lora.SubnetSamplingTrainLoop',
    max_epochs=30,
    val_interval=10,
    space={{_base_.space}},
    seed=0,
)
val_cfg = dict(
    type='tas_lora.SubnetValLoop',
    space={{_base_.space}},
    subnets=dict(smallest='smallest', largest='largest'),
)
test_cfg = dict(
    type='tas_lora.SubnetTestLoop',
    space={{_base_.space}},
    subnets=dict(smallest='smallest', largest='largest'),
)
