"""The digits with one more dimension to search: patches of 2 or 4 pixels, stage 1.

python tools/train.py configs/digits_patches_supernet.py

GPUs: 0, about a minute and a half on two CPU cores. Measured top-1: configs/README.md.
"""

_base_ = './digits_supernet.py'

space = dict(patch_size=[2, 4])
model = dict(backbone=dict(patch_size=[2, 4]))
train_cfg = dict(space=dict(patch_size=[2, 4]))
val_cfg = dict(space=dict(patch_size=[2, 4]))
test_cfg = dict(space=dict(patch_size=[2, 4]))
