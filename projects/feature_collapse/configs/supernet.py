"""Stage 1: AutoFormer's supernet.

python run.py --parts supernet
"""

_base_ = ['_base_/model.py', '_base_/data.py', '_base_/runtime.py']

optim_wrapper = dict(
    type='tas_lora.SupernetOptimWrapper',
    optimizer=dict(type='AdamW', lr=4e-3, weight_decay=0.05, fused=True),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=2, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=38, begin=2, end=40, convert_to_iter_based=True),
]
train_cfg = dict(
    type='tas_lora.SubnetSamplingTrainLoop',
    max_epochs=40,
    val_interval=40,
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
