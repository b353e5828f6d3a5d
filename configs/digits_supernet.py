"""The supernet of `make demo`: AutoFormer's method on 8x8 digits, stage 1.

python tools/train.py configs/digits_supernet.py

GPUs: 0, about a minute and a half on two CPU cores. Measured top-1: README.md.
"""

_base_ = ['_base_/models/digits.py', '_base_/datasets/digits.py', '_base_/default_runtime.py']

optim_wrapper = dict(
    type='tas_lora.SupernetOptimWrapper',
    optimizer=dict(type='AdamW', lr=4e-3, weight_decay=0.05),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=2, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=28, begin=2, end=30, convert_to_iter_based=True),
]
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
