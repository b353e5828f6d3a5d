"""The emoji, for the network that finetune.py makes, at its size of images.

python tools/order.py projects/from_pretrained/configs/emoji.py --out data/emoji_ordered --batches 4

The network is what tools/supernet_from.py wrote to data/emoji_vit (see the README).
"""

_base_ = ['../../../data/emoji_vit/supernet.py', '../../../configs/_base_/default_runtime.py']
load_from = 'data/emoji_vit/supernet.pth'

data_root = 'data/emoji/'
img_size = _base_.model.backbone.img_size
data_preprocessor = dict(
    num_classes=54,
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True,
)
bicubic = dict(backend='pillow', interpolation='bicubic')
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=img_size, crop_ratio_range=(0.6, 1.0), **bicubic),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(img_size, img_size), **bicubic),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=24,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='CustomDataset', data_prefix=data_root + 'train', pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='CustomDataset', data_prefix=data_root + 'val', pipeline=test_pipeline),
)
test_dataloader = dict(
    batch_size=64,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='CustomDataset', data_prefix=data_root + 'test', pipeline=test_pipeline),
)
val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator
