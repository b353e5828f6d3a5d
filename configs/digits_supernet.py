"""The supernet of `make demo`: AutoFormer's method on 8x8 digits, stage 1.

python tools/train.py configs/digits_supernet.py

GPUs: 0, about a minute and a half on two CPU cores. Measured top-1: README.md.
"""

_base_ = [
    '_base_/models/digits.py',
    '_base_/datasets/digits.py',
    '_base_/schedules/small_supernet_30e.py',
    '_base_/default_runtime.py',
]
train_cfg = dict(space={{_base_.space}})
val_cfg = dict(space={{_base_.space}})
test_cfg = dict(space={{_base_.space}})
