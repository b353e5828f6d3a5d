"""CIFAR-10 at 384 pixels, from the same export: positions adapted from 14 x 14 to 24 x 24 patches.

tools/dist_train.sh configs/transfer/s_cifar10_384.py 8

GPUs: 8, batch 8 x 32, two batches per step. Top-1: no published figure; not run here.
"""

_base_ = './s_cifar10.py'

# As with the smaller grid, no offset is clipped.
model = dict(backbone=dict(img_size=384, max_relative_position=23))
resize = dict(type='Resize', scale=(384, 384), **_base_.bicubic)
crop = dict(_base_.train_transforms[0], scale=384)

train_dataloader = dict(batch_size=32, dataset=dict(pipeline=[crop, *_base_.train_transforms[1:]]))
val_dataloader = dict(batch_size=32, dataset=dict(pipeline=[resize, dict(type='PackInputs')]))
test_dataloader = val_dataloader
optim_wrapper = dict(accumulative_counts=2)
