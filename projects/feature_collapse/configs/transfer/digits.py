"""Handwritten digits, drawn larger, learnt from an exported subnet of Fashion-MNIST.

python transfer.py

Few passes on 1,150 images, so that where a training starts from matters.
"""

_base_ = [
    '../_base_/model.py',
    '../../../../configs/_base_/datasets/digits.py',
    '../../../../configs/_base_/schedules/transfer.py',
    '../_base_/runtime.py',
]

optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=4e-3, weight_decay=0.05, fused=True)
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.02, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=3, begin=1, end=4, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=4, val_interval=4)  # of five passes each
enlarge = dict(type='Resize', scale=28, interpolation='bicubic')
shift = dict(type='RandomCrop', crop_size=8, padding=1)
train_pipeline = [
    dict(type='RandomApply', prob=0.4, transforms=[shift]),
    enlarge,
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(dataset=dict(dataset=dict(pipeline=train_pipeline))))
test_pipeline = [enlarge, dict(type='PackInputs')]
val_dataloader = dict(dataset=dict(dataset=dict(pipeline=test_pipeline)))
heldout_dataloader = val_dataloader
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
