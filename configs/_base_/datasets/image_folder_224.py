# The folder of images at 224 pixels. Classes and the number of held-out images: image_folder.py.
_base_ = './image_folder.py'

bicubic = dict(backend='pillow', interpolation='bicubic')
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=224, crop_ratio_range=(0.6, 1.0), **bicubic),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=256, edge='short', **bicubic),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))
heldout_dataloader = dict(dataset=dict(dataset=dict(pipeline=test_pipeline)))
val_dataloader = heldout_dataloader
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
