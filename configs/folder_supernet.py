"""A supernet on your own folder of images, stage 1. The guide is docs/own_data.md.

python tools/train.py configs/folder_supernet.py

GPUs: 0, minutes on two CPU cores. Measured top-1 on letters: docs/own_data.md.
"""

_base_ = [
    '_base_/models/image_folder.py',
    '_base_/datasets/image_folder.py',
    '_base_/schedules/small_supernet_30e.py',
    '_base_/default_runtime.py',
]

model = dict(
    backbone=dict(img_size={{_base_.img_size}}),
    head=dict(num_classes={{_base_.data_preprocessor.num_classes}}),
)
default_hooks = dict(logger=dict(interval=10))
train_cfg = dict(space={{_base_.space}})
val_cfg = dict(space={{_base_.space}})
test_cfg = dict(space={{_base_.space}})
