"""A supernet of 199,260 subnets on Fashion-MNIST, stage 1: a benchmark for searches.

python tools/train.py configs/fashion_supernet.py

GPUs: 0, ten minutes on two CPU cores. Held-out top-1 of the found subnet: docs/search.md.
"""

_base_ = [
    '_base_/models/fashion_mnist.py',
    '_base_/datasets/fashion_mnist.py',
    '_base_/schedules/small_supernet_30e.py',
    '_base_/default_runtime.py',
]

param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=11, begin=1, end=12, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=12, val_interval=4, space={{_base_.space}})
val_cfg = dict(space={{_base_.space}})
test_cfg = dict(space={{_base_.space}})
