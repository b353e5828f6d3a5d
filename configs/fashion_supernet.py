"""A supernet of 199,260 subnets on Fashion-MNIST, stage 1: a benchmark for searches.

python tools/train.py configs/fashion_supernet.py

GPUs: 0, ten minutes on two CPU cores. Held-out top-1 of the found subnet: docs/search.md.
"""

_base_ = [
    '_base_/models/fashion_mnist.py',
    '_base_/datasets/fashion_mnist.py',
    '_base_/default_runtime.py',
]

optim_wrapper = dict(
    type='tas_lora.SupernetOptimWrapper',
    optimizer=dict(type='AdamW', lr=4e-3, weight_decay=0.05),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=11, begin=1, end=12, convert_to_iter_based=True),
]
train_cfg = dict(
    type='tas_lora.SubnetSamplingTrainLoop',
    max_epochs=12,
    val_interval=4,
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
